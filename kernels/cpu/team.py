"""Threads that share the work of a plan, and how many of them it is worth waking.

Helpers sleep on a lock between plans. Nothing depends on them: the caller of `run` does all that nobody else
takes, so a helper that is late, asleep or gone costs time and never a result.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np

from kernels.cpu.layout import ASLEEP, LINE_BYTES, RUNNING, YIELD
from kernels.cpu.machine import Library
from kernels.cpu.plan import Plan, address_of

LINE_WORDS = LINE_BYTES // 8
MOST_THREADS = 64
LINGER = 4000  # pauses a helper waits for the next plan before it sleeps: about 100 us
WORTH_SHARING = 1 << 19  # bytes: below about 15 us of work, waking somebody costs more than it brings


class Team:
    """The threads of one backend.

    threads : how many may work at once, the caller's own included
    """

    def __init__(self, library: Library, threads: int):
        self.threads = max(1, min(threads, MOST_THREADS))
        self._library = library
        self._pace = Pace(self.threads)
        self._begin()

    def run(self, plan: Plan) -> None:
        """Runs a plan to its end."""
        if self._owner != os.getpid():
            self._begin()  # after a fork the helpers are the parent's
        with self._lock:
            if self.threads == 1 or plan.cost < WORTH_SHARING:
                self._library.run(self._place, plan.address, plan.records, 0)
                return
            workers = self._pace.workers(plan.cost)
            begun = time.perf_counter()
            self._share(plan, workers - 1)
            self._pace.note(plan.cost, workers, time.perf_counter() - begun)

    def close(self) -> None:
        """Ends the helpers; a team without them still works."""
        self._end()

    def _share(self, plan: Plan, helpers: int) -> None:
        try:
            woken = self._wake(helpers)
            self._library.run(self._place, plan.address, plan.records, woken)
        finally:
            self._control[RUNNING * LINE_WORDS] = 0  # an interrupt may have come before `run` did

    def _wake(self, helpers: int) -> int:
        """Tells helpers that a plan begins; how many there are."""
        if not self._gates:
            self._hire()
        helpers = min(helpers, len(self._gates))
        sleepers = self._library.wake(self._place, helpers)
        for i in range(helpers):
            if sleepers >> i & 1:
                with suppress(RuntimeError):  # it has been woken before, and is still on its way
                    self._gates[i].release()
        return helpers

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._control = _aligned((ASLEEP + self.threads) * LINE_WORDS)
        self._place = address_of(self._control)
        self._control[YIELD * LINE_WORDS] = _yield_address()
        self._gates: list[threading.Lock] = []
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._end = weakref.finalize(self, _dismiss, self._gates, self._closed, self._threads)

    def _hire(self) -> None:
        if self._closed.is_set():
            return
        for index in range(self.threads - 1):
            gate = threading.Lock()
            gate.acquire()
            self._control[(ASLEEP + index) * LINE_WORDS] = 1
            operands = (self._library, self._control, index, gate, self._closed)
            thread = threading.Thread(target=_help, args=operands, name=f"kernels-{index + 1}", daemon=True)
            thread.start()
            self._gates.append(gate)
            self._threads.append(thread)


class Pace:
    """How many threads bring a plan to its end soonest, learnt from how long plans took.

    The choice is among all threads, half of them, a quarter, down to one. Work of the same size (to a power
    of two) is timed together, and judged by the median of its last times, since a thread that is put aside
    for a slice of the scheduler says nothing about the next plan. Every PROBE plans a neighbour of the choice
    is tried: so the count falls when the cores are busy with other things, and rises again when they are not.
    """

    SETTLE = 2  # plans before anything is timed: the first ones find cold caches
    KEPT, ENOUGH = 5, 3  # times kept of a count, and times it takes to judge one
    PROBE = 32
    CLEAR = 0.95  # a neighbour is better below this part of the time

    def __init__(self, threads: int):
        self.counts = [threads]
        while self.counts[-1] > 1:
            self.counts.append(self.counts[-1] // 2)
        self._sizes: dict[int, _Size] = {}

    def workers(self, cost: int) -> int:
        """How many threads the next plan of this cost should have."""
        size = self._sizes.setdefault(cost.bit_length(), _Size(len(self.counts)))
        size.plans += 1
        near = self._near(size)
        if size.plans > self.SETTLE:
            unknown = [i for i in near if len(size.rates[i]) < self.ENOUGH]
            if unknown:
                return self.counts[unknown[0]]
            if near and size.plans % self.PROBE == 0:
                return self.counts[near[size.plans // self.PROBE % len(near)]]
        return self.counts[size.at]

    def note(self, cost: int, workers: int, seconds: float) -> None:
        """A plan of this cost took this long."""
        size = self._sizes[cost.bit_length()]
        if size.plans <= self.SETTLE:
            return
        size.rates[self.counts.index(workers)].append(seconds / cost)
        known = [i for i in self._near(size) if len(size.rates[i]) >= self.ENOUGH]
        for i in known if len(size.rates[size.at]) >= self.ENOUGH else ():
            if median(size.rates[i]) < self.CLEAR * median(size.rates[size.at]):
                size.at = i
                return

    def _near(self, size: _Size) -> list[int]:
        return [i for i in (size.at + 1, size.at - 1) if 0 <= i < len(self.counts)]


class _Size:
    """Plans of one size: how many came, which count is in use, and by count the last seconds per byte."""

    __slots__ = ("at", "plans", "rates")

    def __init__(self, counts: int):
        self.plans, self.at = 0, 0
        self.rates: list[deque[float]] = [deque(maxlen=Pace.KEPT) for _ in range(counts)]


def cores() -> int:
    """Processors this process may keep busy: its affinity, and whole ones of its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, math.floor(min(allowed, quota)))


def _quota(root: Path, membership: Path) -> float:
    """Processors a Linux control group grants, the least of its ancestors'; infinite without one."""
    try:
        lines = membership.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return math.inf
    group = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder, least = root / group.lstrip("/"), math.inf
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        with suppress(OSError, ValueError, ZeroDivisionError):
            granted, period = (place / "cpu.max").read_text(encoding="ascii").split()
            if granted != "max":
                least = min(least, int(granted) / int(period))
    with suppress(OSError, ValueError, ZeroDivisionError):  # the first version of control groups
        quota = int((root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii"))
        if quota > 0:
            least = min(least, quota / int((root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii")))
    return least


def _help(
    library: Library, control: np.ndarray, index: int, gate: threading.Lock, closed: threading.Event
) -> None:
    """A helper's life."""
    while True:
        gate.acquire()
        if closed.is_set():
            return
        library.assist(address_of(control), index, LINGER)


def _dismiss(gates: list[threading.Lock], closed: threading.Event, threads: list[threading.Thread]) -> None:
    closed.set()
    for gate in gates:
        with suppress(RuntimeError):
            gate.release()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=1.0)


def _aligned(words: int) -> np.ndarray:
    """Zeroed 64-bit words that begin on a cache line."""
    memory = np.zeros(words + LINE_WORDS, np.int64)
    skip = -address_of(memory) % LINE_BYTES // 8
    return memory[skip : skip + words]


def _yield_address() -> int:
    """The system's function that lets another thread have this core."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
