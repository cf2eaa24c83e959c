"""How long a GPU takes: medians by its own clock, each taken twice; and whether time is left for more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from kernels.cuda.backend import Cuda

MOST_IN_A_ROW = 1000  # of one kind in one sample


def _nothing() -> None:
    """What is done before a sample that needs no preparation."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one piece of work: two medians, taken one after the other."""

    seconds: float
    again: float

    def __truediv__(self, count: float) -> Timing:
        return Timing(self.seconds / count, self.again / count)


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to look.

    budget_s : what is not begun by then is left out
    samples : behind each of the two medians
    sample_s : a sample is repeated work of at least so long, so that starting it does not count
    """

    budget_s: float = 540.0
    samples: int = 9
    sample_s: float = 0.005


class Stopwatch:
    """The clock of one measurement; it starts when it is made."""

    def __init__(self, effort: Effort):
        self.effort = effort
        self._started = time.perf_counter()

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self._started

    @property
    def over(self) -> bool:
        """The budget is spent."""
        return self.spent_s >= self.effort.budget_s

    def recorded(self, ops: Cuda, work: Callable[[], None]) -> Timing:
        """What `work` takes on the device of `ops` when it is replayed."""
        work()  # compiles and allocates
        return self.queued(ops, ops.capture(work))

    def queued(
        self, ops: Cuda, act: Callable[[], object], before: Callable[[], object] = _nothing
    ) -> Timing:
        """What the device takes for each of several `act`s in a row.

        before : sets right what `act` moves on; done before every sample and not timed
        """
        timed, times = ops.device.timed, 1

        def acts() -> None:
            for _ in range(times):
                act()

        before()
        act()
        before()
        times = min(MOST_IN_A_ROW, max(1, math.ceil(self.effort.sample_s / max(timed(acts), 1e-9))))

        def sample() -> float:
            before()
            return timed(acts) / times

        return self._twice(sample)

    def called(self, ops: Cuda, call: Callable[[], object], calls: int) -> Timing:
        """What one `call` costs its caller, who does not wait for the device; `calls` fit its queue."""
        call()
        ops.device.timed(_nothing)

        def sample() -> float:
            started = time.perf_counter()
            for _ in range(calls):
                call()
            spent = time.perf_counter() - started
            ops.device.timed(_nothing)  # until the queue is empty
            return spent / calls

        return self._twice(sample)

    def waited(self, act: Callable[[], object], before: Callable[[], object] = _nothing) -> Timing:
        """What `act` takes by the clock on the wall, including all that it waits for."""

        def sample() -> float:
            before()
            started = time.perf_counter()
            act()
            return time.perf_counter() - started

        return self._twice(sample)

    def _twice(self, sample: Callable[[], float]) -> Timing:
        sample()
        first, second = (median(sample() for _ in range(self.effort.samples)) for _ in range(2))
        return Timing(first, second)
