"""Ends made of arrays and lists: for programs that hold their own audio, and for tests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.clock import RealTime, Time
from pipeline.ends.blocks import Mixdown, block_samples, paced
from pipeline.errors import GraphError, SourceError
from stages.packet import Packet, Text
from stages.stage import Port, pcm


class MemorySource:
    """Samples that are already here.

    Parameters
    ----------
    samples : [samples] or [samples, channels], cut into blocks of `block_ms`; or an iterable of such arrays,
        which are the blocks
    pace : `asap`, `realtime` or a factor, as for files
    """

    live = False
    lost = 0
    label = "samples in memory"

    def __init__(
        self,
        samples: np.ndarray | Iterable[np.ndarray],
        rate_hz: int,
        *,
        block_ms: float | None = None,
        pace: str | float = "asap",
    ):
        self.rate_hz = rate_hz
        self.pace = pace
        self.clock: Time = RealTime()
        self.notes: list[str] = []
        self._size = block_samples(block_ms, pace, rate_hz)
        self._samples = samples
        self._stop = threading.Event()

    @property
    def duration_s(self) -> float | None:
        return len(self._samples) / self.rate_hz if isinstance(self._samples, np.ndarray) else None

    def open(self) -> Port:
        return pcm(self.rate_hz)

    def blocks(self) -> Iterator[np.ndarray]:
        mix = Mixdown()
        parts, size = self._samples, self._size
        if isinstance(parts, np.ndarray):
            samples = checked(parts)
            parts = (samples[at : at + size] for at in range(0, len(samples), size))
        blocks = (mix(columns(part)) for part in parts)
        yield from paced(blocks, self.rate_hz, self.pace, self.clock, self._stop)
        self.notes += mix.note()

    def close(self) -> None:
        self._stop.set()


class PushSource:
    """Samples that another thread hands over as they come.

    `push` waits while more than `window_s` of audio is held, unless told not to; `end` says that it was all.
    """

    live = False
    lost = 0
    label = "pushed samples"
    duration_s: float | None = None

    def __init__(self, rate_hz: int, *, window_s: float = 10.0):
        if window_s <= 0:
            raise GraphError(f"a window is longer than nothing, not {window_s!r} s")
        self.rate_hz = rate_hz
        self.notes: list[str] = []
        self._window = max(1, round(window_s * rate_hz))
        self._mix = Mixdown()
        self._held: deque[np.ndarray] = deque()
        self._samples = 0
        self._ended = self._closed = False
        self._turn = threading.Condition()

    @property
    def held_s(self) -> float:
        """Seconds pushed and not yet read."""
        return self._samples / self.rate_hz

    def push(self, block: np.ndarray, *, wait: bool = True) -> bool:
        """Hand over [samples] or [samples, channels]; False if there was no room or nobody reads any more.

        Raises
        ------
        SourceError   after `end`
        """
        samples = self._mix(columns(block))
        with self._turn:
            if self._ended:
                raise SourceError("pushed samples: push came after end")
            if wait:
                self._turn.wait_for(lambda: self._closed or self._samples < self._window)
            if self._closed or self._samples >= self._window:
                return False
            self._held.append(samples)
            self._samples += len(samples)
            self._turn.notify_all()
            return True

    def end(self) -> None:
        """No more samples will come; `blocks` ends after those that are held. May be called twice."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def open(self) -> Port:
        return pcm(self.rate_hz)

    def blocks(self) -> Iterator[np.ndarray]:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._closed or self._held or self._ended)
                if self._closed or not self._held:
                    break
                block = self._held.popleft()
                self._samples -= len(block)
                self._turn.notify_all()
            yield block
        self.notes += self._mix.note()

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify_all()


class Memory:
    """Keeps all that reaches it: the sink of programs that want the answer, and the tests' double.

    `packets` in order; `cuts` as sample positions; `pieces` the `Text`s of text packets; `emitted_s` when
    each packet came out, where the engine said so.
    """

    TAKES = "text"

    def __init__(self) -> None:
        self.port: Port | None = None
        self.packets: list[Packet] = []
        self.pieces: list[Text] = []
        self.emitted_s: list[float | None] = []
        self.cuts: list[int] = []
        self.closed = False

    @property
    def text(self) -> str:
        """The transcript so far, without the space that opens it."""
        return "".join(piece.text for piece in self.pieces).lstrip()

    def open(self, port: Port) -> None:
        self.port = port

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        self.packets.append(packet)
        self.emitted_s.append(emitted_s)
        if isinstance(packet.data, list):
            self.pieces += packet.data

    def cut(self, at: int) -> None:
        self.cuts.append(at)

    def close(self) -> None:
        self.closed = True


def checked(samples: np.ndarray) -> np.ndarray:
    """The same samples.

    Raises
    ------
    SourceError   if they are not [samples] or [samples, channels], or no numbers
    """
    samples = np.asarray(samples)
    shape = samples.shape
    if samples.dtype.kind not in "fiu" or len(shape) not in (1, 2) or shape[1:] == (0,):
        raise SourceError(f"samples are numbers [samples] or [samples, channels], not {samples.dtype}{shape}")
    return samples


def columns(samples: np.ndarray) -> np.ndarray:
    """[samples] or [samples, channels] as [samples, channels], integers scaled to [-1, 1]; else as `checked`.
    """
    samples = checked(samples)
    if samples.dtype.kind in "iu":
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples - (full if samples.dtype.kind == "u" else 0.0)) / full
    return samples[:, None] if samples.ndim == 1 else samples
