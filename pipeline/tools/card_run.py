"""A measurement of a card under way: what is swept, what has been taken, and how long it may go on."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

from kernels import DeviceLost, KernelError
from kernels.cuda.backend import Cuda, Kv, Layout
from pipeline.progress import say
from pipeline.tools.card_clock import Stopwatch, Timing
from pipeline.tools.card_figures import Error, Figure, Place
from pipeline.tools.machine import size
from stages.voxtral.config import LEFT_PAD_TOKENS, OFFICIAL, Config

KV: tuple[Kv, ...] = get_args(Kv)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
TIME_UP = "the time was up; a larger --budget takes it too"
SPARE = 1.1  # of what is needed, before it is tried: scratch and rounding


class Absent(Exception):
    """A peer that is not installed, or cannot do what was asked; it ends a row, never the run."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is measured.

    rows : of x in a matrix product; lanes : speakers in a step; recordings : heard side by side, offline
    positions : of the decoder, so far
    tick_position : where it stands in ticks
    silence : tokens before a speaker's first block
    pool_bytes : weights and rings of one kind are repeated to this size and used in turn, so that none is
        found in a cache: twice the largest there is (126 MB, Blackwell)
    read_bytes : for the speed of memory; calls : queued in a row; links : of empty kernels in one recording
    """

    config: Config = OFFICIAL
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    lanes: tuple[int, ...] = (1, 8, 32, 64)
    recordings: tuple[int, ...] = (1, 8, 32)
    positions: tuple[int, ...] = (1000, 8192)
    tick_position: int = 1000
    silence: int = LEFT_PAD_TOKENS
    pool_bytes: int = 256 << 20
    read_bytes: int = 1 << 30
    calls: int = 500
    links: int = 1000

    def copies(self, nbytes: int) -> int:
        """How many of something of `nbytes` fill the pool."""
        return max(1, math.ceil(self.pool_bytes / max(1, nbytes)))


@dataclass(slots=True)
class CardRun:
    """What the parts of the measurement share.

    ops : the backend, keys and values as f16
    """

    ops: Cuda
    sweep: Sweep
    watch: Stopwatch
    figures: list[Figure] = field(default_factory=list)
    errors: list[Error] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _lost: str = ""

    def take(
        self, place: Place, variant: str, timing: Callable[[], Timing], *, nbytes: int = 0, flops: int = 0
    ) -> None:
        """Add a figure; one that fails, or for which there is no time, says why in place of its time."""
        time, why = None, self._lost or (TIME_UP if self.watch.over else "")
        if not why:
            try:
                time = timing()
            except DeviceLost as error:
                why = self._lost = str(error)
            except Exception as error:  # of anything: minutes of other figures are not lost for it
                why = _said(error)
        self.figures.append(Figure(place, variant, time, nbytes, flops, why))

    def check(self, op: str, allowed: float, error: Callable[[], float]) -> None:
        """Add how far `op` is from float64, or a note of why that is not known."""
        if why := self._lost or (TIME_UP if self.watch.over else ""):
            self.notes.append(f"error of {op}: {why}")
            return
        try:
            self.errors.append(Error(op, error(), allowed))
        except Exception as reason:  # as above
            self.notes.append(f"error of {op}: {_said(reason)}")

    def variant(self, *, kv: Kv = "f16", layout: Layout = "fragment") -> Cuda:
        """The same card, used in another way."""
        return Cuda(self.ops.device, kv=kv, layout=layout)

    def need(self, nbytes: int) -> None:
        """See that the card has room.

        Raises
        ------
        Absent   naming what is needed and what is free
        """
        free = self.ops.device.free_bytes()
        if SPARE * nbytes > free / 2:  # recorded steps and their buffers hold each other until looked for
            gc.collect()
            free = self.ops.device.free_bytes()
        if SPARE * nbytes > free:
            raise Absent(f"needs {size(nbytes)} on the card, {size(free)} are free")

    def give_back(self) -> None:
        """Leave the driver what is no longer held: peers have allocators of their own."""
        gc.collect()
        with suppress(KernelError):  # a lost device is met again by the next figure, which says so
            self.ops.device.trim()

    def begin(self, what: str) -> None:
        """Say what comes next, and how much of the time is spent."""
        say(f"{self.watch.spent_s:4.0f} s  {what}")


def _said(error: Exception) -> str:
    if isinstance(error, KernelError | Absent | MemoryError):
        return str(error) or type(error).__name__
    return f"unexpected {error!r}"
