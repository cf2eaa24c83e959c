"""Steps of the usual length: for the lanes at work alone, recorded once and then replayed.

A state opened for many lanes steps only the first 1, 2, 4 ... or all of them: its *bucket* is the smallest
that holds the highest lane at work, and a lane's answers are the same bits as long as the bucket is the same.
Each bucket has a recording of its own, since a recording fixes shapes and addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from kernels import Backend, Ring, Tensor
from stages.packet import Packet

S = TypeVar("S")


def bucket(packet: Packet) -> int:
    """How many lanes a step on `packet` has to touch."""
    last = max((lane for lane, span in enumerate(packet.spans) if span is not None), default=0)
    return min(len(packet.spans), 1 << last.bit_length())


def first_lanes(state: Any, lanes: int) -> Any:
    """`state` with every tensor in its dataclasses and tuples cut to its first `lanes` rows; same memory."""
    if isinstance(state, Ring):
        return state.lanes(lanes)
    if isinstance(state, tuple):
        return tuple(first_lanes(part, lanes) for part in state)
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{f.name: first_lanes(getattr(state, f.name), lanes) for f in fields(state)})
    return state[:lanes] if hasattr(state, "shape") else state


@dataclass(slots=True, eq=False)
class Active:
    """Which lanes take part in a step.

    words : [B] i32, 1 for a lane at work
    known : what `words` hold; they are written only where that changes
    """

    words: Tensor
    known: tuple[bool, ...] = ()

    @classmethod
    def make(cls, ops: Backend, lanes: int) -> Active:
        return cls(ops.zeros((lanes,), "i32"))

    def follow(self, ops: Backend, packet: Packet) -> None:
        at_work = tuple(span is not None for span in packet.spans)
        if at_work != self.known:
            ops.upload(np.array(at_work, np.int32), self.words)
            self.known = at_work


class Replays:
    """The recordings of one state's step, by bucket.

    A bucket's first step runs as it is and is recorded behind that: it has then compiled and allocated all
    that a recording may not. Nothing is run for the sake of recording, and `open` costs nothing for buckets
    that never come; a live session pays for a recording, a few steps' worth, inside the 80 ms of one token.

    A recording points at the buffers of its state, so a copied state begins with none.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[int, Callable[[], None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Replays:
        return Replays()

    def run(self, ops: Backend, step: Callable[[S], None], state: S, lanes: int) -> None:
        """`step(state)` for the first `lanes` lanes; it makes ops on tensors of `state` and nothing else."""
        replay = self._made.get(lanes)
        if replay is not None:
            replay()
            return
        once = partial(step, first_lanes(state, lanes))
        once()
        self._made[lanes] = ops.capture(once)
