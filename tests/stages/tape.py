"""A backend that records as a GPU does: a capture notes the ops and their tensors, and runs none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kernels import Backend
from kernels.portable.backend import Portable

NOT_WHILE_RECORDING = ("zeros", "upload", "adopt", "fetch", "clear", "ring", "capture")
VERBS = [verb for verb in vars(Backend) if callable(getattr(Backend, verb)) and not verb.startswith("_")]
OPS = VERBS[VERBS.index("capture") + 1 :]


class Tape(Portable):
    """The portable backend's arithmetic, with recordings that hold addresses.

    A step that looks at values, swaps a buffer or comes with another scalar replays wrongly here, and one
    that allocates or talks to the host is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[Callable[[], Any]] | None = None
        for op in OPS:
            setattr(self, op, partial(self._run_or_note, getattr(self, op)))
        for verb in NOT_WHILE_RECORDING:
            setattr(self, verb, partial(self._now_only, verb, getattr(self, verb)))

    def copy(self, tensor: Any, out: Any | None = None) -> Any:
        if out is None:
            return self._now_only("copy without out", super().copy, tensor)
        self._run_or_note(super().copy, tensor, out)
        return out

    def capture(self, fn: Callable[[], None]) -> Callable[[], None]:
        tape = self._tape = []
        try:
            fn()
        finally:
            self._tape = None

        def replay() -> None:
            for op in tape:
                op()

        return replay

    def _run_or_note(self, op: Callable[..., Any], *operands: Any) -> None:
        if self._tape is None:
            op(*operands)
        else:
            self._tape.append(partial(op, *operands))

    def _now_only(self, verb: str, act: Callable[..., Any], *operands: Any, **options: Any) -> Any:
        assert self._tape is None, f"a recorded step calls {verb}"
        return act(*operands, **options)
