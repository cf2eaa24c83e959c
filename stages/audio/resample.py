"""From the source's sample clock to the graph's: the one place where the clock changes.

The arithmetic is soxr's. Its answer does not depend on how the samples are sliced, and this file adds the
three things a stage needs besides: exact integer clocks, a stated latency, and a state that can be copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, gcd
from typing import Any

import numpy as np

from stages.errors import ConfigError
from stages.packet import Cut, Packet, Span
from stages.stage import Clock, Emission, Port, Row, emit, pcm, per_lane, plug

QUALITIES = ("QQ", "LQ", "MQ", "HQ", "VHQ")
SLOWEST_HZ, FASTEST_HZ = 1_000, 1_000_000
PROBE_MS = 1  # soxr answers in blocks of up to 100 ms; its lag is sampled this often, for a second


@dataclass(slots=True)
class ResampleLane:
    """One lane: how far it has come, and the samples from which soxr's own state can be built again.

    soxr's state is opaque: a copy (or a pickle) of a lane leaves it out, and its next step replays `tail`.
    """

    clock: Clock = field(default_factory=Clock)
    at: int = 0  # output sample the stream begins at
    heard: int = 0  # input samples of this stream
    given: int = 0  # output samples of this stream
    skip: int = 0  # output samples of a rebuilt soxr stream that were given before the copy
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # the last samples heard
    soxr: Any = None

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        kept = {name: getattr(self, name) for name in self.__slots__}
        return None, {**kept, "soxr": None}


class Resample:
    """Samples at `to` Hz from samples at any rate; nothing at all where the two are equal.

    Takes    pcm at any rate from 1 kHz to 1 MHz
    Gives    pcm at `to` Hz; L samples make L * to / rate of them, halves rounded up, as soxr does offline
    Holds    soxr's filters, and twice its latency in samples, from which a copied lane is resumed
    Latency  soxr's blocks, measured at construction; HQ: 38 ms from 48 kHz, 41 from 44.1, 117 from 8 kHz

    A stream that begins at sample s of the source's clock begins at floor(s * to / rate) of the graph's.

    Parameters
    ----------
    upstream : the port of the stage before, pcm
    to : Hz of the graph's clock
    quality : soxr's recipe, QQ, LQ, MQ, HQ or VHQ; HQ is what the official front end uses

    Raises
    ------
    ConfigError   if a rate or the quality is out of range, or soxr is needed and not installed
    """

    quantum = 1

    def __init__(self, upstream: Port, *, to: int = 16_000, quality: str = "HQ"):
        self.takes = plug("resample", upstream, "pcm")
        for rate in (upstream.rate, to):
            if not SLOWEST_HZ <= rate <= FASTEST_HZ:
                raise ConfigError(f"resample: {rate!r} Hz, expected {SLOWEST_HZ} to {FASTEST_HZ} Hz")
        if quality not in QUALITIES:
            raise ConfigError(f"resample: quality is {quality!r}, expected one of {', '.join(QUALITIES)}")
        self.gives = pcm(to)
        self.quality = quality
        self._period = upstream.rate // gcd(upstream.rate, to)  # input samples between common ticks
        self.lookahead = 0 if to == upstream.rate else self._measure_lag()
        self._history = ceil(2 * self.lookahead * upstream.rate / to)  # input samples

    def open(self, lanes: int = 1) -> list[ResampleLane]:
        return [ResampleLane() for _ in range(lanes)]

    def step(self, state: list[ResampleLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[ResampleLane], lane: int = 0) -> list[Emission]:
        ended, state[lane] = state[lane], ResampleLane()
        if not ended.heard or self.takes.rate == self.gives.rate:
            return []
        rest = self._push(ended, np.zeros(0, np.float32), last=True)
        missing = self._rounded(ended.heard) - ended.given
        return emit(len(state), lane, self._rows(ended, rest[:missing]))

    def _lane(self, lane: ResampleLane, items: np.ndarray, span: Span) -> list[Row | Cut]:
        if lane.clock.next is None:
            lane.at = span.start * self.gives.rate // self.takes.rate
        lane.clock.advance("resample", span)
        if self.takes.rate == self.gives.rate:
            return [(items, span)]
        items = np.asarray(items, np.float32)
        out = self._push(lane, np.ascontiguousarray(items))
        lane.heard += len(items)
        self._remember(lane, items)
        return self._rows(lane, out)

    def _push(self, lane: ResampleLane, items: np.ndarray, last: bool = False) -> np.ndarray:
        """What soxr answers; a copied lane hears its tail again first."""
        if lane.soxr is None:
            lane.soxr = self._stream()
            items = np.concatenate([lane.tail, items])
            lane.skip = lane.given - (lane.heard - len(lane.tail)) * self.gives.rate // self.takes.rate
        out = lane.soxr.resample_chunk(items, last=last)
        again = min(lane.skip, len(out))
        lane.skip -= again
        return out[again:]

    def _remember(self, lane: ResampleLane, items: np.ndarray) -> None:
        """Keep the tail from a common tick of both clocks on, so that a replay lands on the same grid."""
        tail = np.concatenate([lane.tail, items])
        first = lane.heard - len(tail)
        keep_from = max(first, (lane.heard - self._history) // self._period * self._period)
        lane.tail = tail[keep_from - first :].copy()

    def _rows(self, lane: ResampleLane, out: np.ndarray) -> list[Row | Cut]:
        if not len(out):
            return []
        start = lane.at + lane.given
        lane.given += len(out)
        return [(out, Span(start, start + len(out)))]

    def _rounded(self, heard: int) -> int:
        return (2 * heard * self.gives.rate + self.takes.rate) // (2 * self.takes.rate)

    def _stream(self) -> Any:
        try:
            import soxr  # type: ignore[import-untyped]  # here: equal rates need none, and a browser has none
        except ImportError as error:
            rates = f"{self.takes.rate} Hz to {self.gives.rate} Hz"
            raise ConfigError(f"resample: {rates} needs soxr, which is missing; pip install soxr") from error
        return soxr.ResampleStream(self.takes.rate, self.gives.rate, 1, dtype="float32", quality=self.quality)

    def _measure_lag(self) -> int:
        """The most output samples that were due and not yet given, over a second of silence."""
        stream, given, lag = self._stream(), 0, 0.0
        probe = np.zeros(ceil(self.takes.rate * PROBE_MS / 1000), np.float32)
        for n in range(1, 1000 // PROBE_MS + 1):
            lag = max(lag, n * len(probe) * self.gives.rate / self.takes.rate - given)
            given += len(stream.resample_chunk(probe))
        return ceil(lag) + 1
