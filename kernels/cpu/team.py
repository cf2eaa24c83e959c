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
from contextlib import suppress
from pathlib import Path

import numpy as np

from kernels.cpu.layout import ASLEEP, LINE_BYTES, YIELD
from kernels.cpu.machine import Library
from kernels.cpu.plan import address_of

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

    def run(self, plan: np.ndarray, cost: int, held: object = None) -> None:
        """Runs a plan; `cost` is about the bytes it reads, `held` what it points at."""
        if self._owner != os.getpid():
            self._begin()  # after a fork the helpers are the parent's
        with self._lock:
            if self.threads == 1 or cost < WORTH_SHARING:
                self._run(plan, 0)
                return
            workers = self._pace.workers(cost)
            begun = time.perf_counter()
            self._run(plan, workers - 1)
            self._pace.note(cost, workers, time.perf_counter() - begun)

    def close(self) -> None:
        """Ends the helpers; a team without them still works."""
        self._end()

    def _run(self, plan: np.ndarray, helpers: int) -> None:
        control = address_of(self._control)
        if helpers and not self._gates:
            self._hire()
        helpers = min(helpers, len(self._gates))
        sleepers = self._library.wake(control, helpers)
        for i in range(helpers):
            if sleepers >> i & 1:
                with suppress(RuntimeError):  # it has been woken before, and is still on its way
                    self._gates[i].release()
        self._library.run(control, address_of(plan), len(plan))

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._control = _aligned((ASLEEP + self.threads) * LINE_WORDS)
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

    Work of the same size (to a power of two) is timed together. Every PROBE plans, and at once where it has
    never been tried, one thread fewer or one more takes a turn: so the count falls when the cores are busy
    with other things, and rises again when they are not.
    """

    SETTLE = 3  # plans before the first comparison: the first ones find cold caches
    PROBE = 48
    FORGET = 0.3  # what one more time weighs in the average

    def __init__(self, threads: int):
        self._threads = threads
        self._sizes: dict[int, _Size] = {}

    def workers(self, cost: int) -> int:
        size = self._sizes.setdefault(cost.bit_length(), _Size(self._threads))
        size.plans += 1
        if size.plans <= self.SETTLE:
            return size.workers
        near = [n for n in (size.workers - 1, size.workers + 1) if 1 <= n <= self._threads]
        untried = [n for n in near if n not in size.rates]
        if untried:
            return untried[0]
        return near[size.plans // self.PROBE % len(near)] if size.plans % self.PROBE == 0 else size.workers

    def note(self, cost: int, workers: int, seconds: float) -> None:
        """A plan of this cost took this long."""
        size = self._sizes[cost.bit_length()]
        rate, before = seconds / cost, size.rates.get(workers)
        size.rates[workers] = rate if before is None else before + self.FORGET * (rate - before)
        size.workers = min(size.rates, key=size.rates.__getitem__)


class _Size:
    """What is known of plans of one size: the average seconds per byte by the number of threads."""

    __slots__ = ("plans", "rates", "workers")

    def __init__(self, workers: int):
        self.plans, self.workers = 0, workers
        self.rates: dict[int, float] = {}


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
