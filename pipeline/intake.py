"""The one queue that can fill: it stands between a source and the engine and is bounded in seconds of audio.

A file waits while the window is full. A live source cannot, so its graph says what happens: `error` ends the
session, `drop` turns the oldest waiting samples into silence of equal length, which keeps the clock honest,
and counts them. The silence is one number, so the queue's memory is bounded however far the engine falls
behind.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np

from pipeline.errors import Overrun

SILENCE_BLOCK_S = 0.08  # dropped audio is handed on in blocks of one token, as a live source would have


class Bell:
    """Rings when any intake has news; the engine sleeps on it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def rung(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until rung, then fall silent again; False on a time-out."""
        rung = self._event.wait(timeout)
        self._event.clear()
        return rung


class Intake:
    """Blocks of samples on their way from one source to the engine.

    window_s : seconds of audio that may wait
    overrun : "wait" for sources that can, else "drop" or "error"
    """

    def __init__(self, rate: int, bell: Bell, *, window_s: float = 20.0, overrun: str = "wait"):
        self.rate, self.overrun = rate, overrun
        self.window = max(1, round(window_s * rate))
        self.dropped = 0  # samples replaced by silence
        self.pushed = 0  # samples put in; `drained` have come out again
        self.drained = 0
        self.peak = 0  # the most samples that ever waited
        self.ended = False
        self.error: Exception | None = None
        self._bell = bell
        self._silence = 0
        self._blocks: deque[tuple[np.ndarray, float]] = deque()
        self._held = 0
        self._room = threading.Condition()

    @property
    def waiting(self) -> int:
        """Samples inside."""
        return self._silence + self._held

    def put(self, block: np.ndarray) -> bool:
        """Add a block; waits for room where the source can. False: nobody listens any more.

        Raises
        ------
        Overrun   the window is full and the graph says `overrun: error`
        """
        with self._room:
            while (
                self.overrun == "wait"
                and self._held
                and self._held + len(block) > self.window
                and not self.ended
            ):
                self._room.wait()
            if self.ended:
                return False
            self._blocks.append((block, time.monotonic()))
            self._held += len(block)
            self.pushed += len(block)
            if self.overrun != "wait" and self._held > self.window:
                self._overflow()
            self.peak = max(self.peak, self.waiting)
        self._bell.ring()
        return True

    def take(self) -> tuple[np.ndarray, float] | None:
        """The next block and when it arrived (monotonic seconds), or None while there is none."""
        with self._room:
            if self._silence:
                size = min(self._silence, round(SILENCE_BLOCK_S * self.rate))
                self._silence -= size
                block, arrived = np.zeros(size, np.float32), time.monotonic()
            elif self._blocks:
                block, arrived = self._blocks.popleft()
                self._held -= len(block)
                self._room.notify_all()
            else:
                return None
            self.drained += len(block)
            return block, arrived

    def end(self, error: Exception | None = None) -> None:
        """No more blocks will come: the audio is over, or `error` stopped it; what waits is still handed out.

        Only the first call counts: a source that is stopped may still complain that it was.
        """
        with self._room:
            if not self.ended:
                self.error = error
            self.ended = True
            self._room.notify_all()
        self._bell.ring()

    @property
    def exhausted(self) -> bool:
        """Ended, and everything has been taken."""
        return self.ended and not self.waiting

    def _overflow(self) -> None:
        if self.overrun == "error":
            waits, window = self._held / self.rate, self.window / self.rate
            raise Overrun(
                f"{waits:.1f} s of audio wait, the window is {window:.1f} s: this machine is too slow "
                "for the graph; set 'overrun: drop', a larger 'window', or another backend"
            )
        while self._held > self.window and len(self._blocks) > 1:
            block, _ = self._blocks.popleft()
            self._held -= len(block)
            self._silence += len(block)
            self.dropped += len(block)
