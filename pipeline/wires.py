"""Host and device crossings. A wire stands wherever one side's `where` differs from the other's.

`Fetch` keeps the order of everything that leaves the device: answers that are still being copied, and marks
(a cut, the end of a stream) that must not overtake them. Nothing here blocks unless `wait` is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import Backend, Pending


class Upload:
    """Host items to the device."""

    __slots__ = ("_backend",)

    def __init__(self, backend: Backend):
        self._backend = backend

    def __call__(self, items: np.ndarray) -> Any:
        return self._backend.upload(items)


class Fetch:
    """Device items to the host, in order, delivered once they are ready."""

    __slots__ = ("_backend", "_queue")

    def __init__(self, backend: Backend):
        self._backend = backend
        self._queue: deque[tuple[Pending | None, Callable[..., None]]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def items(self, tensor: Any, deliver: Callable[[np.ndarray], None]) -> None:
        """Start the copy; `deliver(array)` follows when it is here and all before it has been delivered."""
        self._queue.append((self._backend.fetch(tensor), deliver))

    def mark(self, act: Callable[[], None]) -> None:
        """Call `act()` behind everything queued so far."""
        self._queue.append((None, act))

    def deliver(self) -> bool:
        """Hand over what is ready, never waiting; says whether anything was."""
        before = len(self._queue)
        while self._queue and (self._queue[0][0] is None or self._queue[0][0].ready()):
            pending, act = self._queue.popleft()
            if pending is None:
                act()
            else:
                act(pending.wait())
        return len(self._queue) < before

    def pending(self) -> Pending | None:
        """What the oldest undelivered answer waits for."""
        return self._queue[0][0] if self._queue else None
