"""Time as the paced ends see it: real for a run, virtual for a test that replays an hour in a second."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Time(Protocol):
    """Seconds since an arbitrary moment, and a way to wait for one."""

    def now(self) -> float: ...

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        """Return at `moment`, or as soon as `stop` is set."""
        ...


class RealTime:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        delay = moment - time.monotonic()
        if delay > 0:
            stop.wait(delay)


class VirtualTime:
    """A clock that stands still until somebody waits, and then is already there."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        if not stop.is_set():
            self.seconds = max(self.seconds, moment)

    def advance(self, seconds: float) -> None:
        """Let time pass without anybody waiting for it: a slow reader, say."""
        self.seconds += seconds
