"""Silence before the first sample and after the last: a model drains its delay as it hears any audio."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stages.errors import ConfigError
from stages.packet import Cut, Packet, Span
from stages.stage import Clock, Emission, Port, Row, emit, per_lane, plug

LONGEST_MS = 600_000.0  # ten minutes of silence is a typing error, not a wish


@dataclass(slots=True)
class PadLane:
    """Where a stream began, None before its first sample, and how far it has come."""

    clock: Clock = field(default_factory=Clock)
    start: int | None = None


class Pad:
    """Silence around a stream: `left` before it; `right` and `delay` after it, in whole items of `align`.

    Takes    pcm
    Gives    pcm on the same clock; the left silence has spans below the stream's first sample
    Holds    two integers per lane
    Latency  none

    A stream of any length leaves as a multiple of `align` samples: its end is rounded up first. A stream
    that never brought a sample is not padded at all.

    Parameters
    ----------
    upstream : the port of the stage before, pcm of any rate
    left_ms : silence before the first sample, whole items of `align_ms` (Voxtral: 32 tokens, 2560 ms)
    right_ms : silence after the last sample (Voxtral: 11 tokens, 880 ms, room for the longest word)
    delay_ms : the model's delay, as much silence again; whole items of `align_ms`
    align_ms : the length of one token; Voxtral and Kyutai both count in 80 ms

    Raises
    ------
    ConfigError   if a duration is negative, not finite, longer than ten minutes or not whole

    Source: `_get_streaming_pad` and `n_right_pad_tokens` in mistral-common's audio tokenizer.
    """

    quantum = 1
    lookahead = 0

    def __init__(
        self, upstream: Port, *, left_ms: float = 0.0, right_ms: float = 0.0, delay_ms: float = 0.0,
        align_ms: float = 80.0,
    ):  # fmt: skip
        self.takes = self.gives = plug("pad", upstream, "pcm")
        self.align = _samples("align", align_ms, upstream.rate)
        if not self.align:
            raise ConfigError("pad: align is 0 ms, expected the length of a token; Voxtral's is 80 ms")
        self.left = _whole("left", left_ms, _samples("left", left_ms, upstream.rate), self.align)
        self.delay = _whole("delay", delay_ms, _samples("delay", delay_ms, upstream.rate), self.align)
        self.right = _samples("right", right_ms, upstream.rate) + self.delay

    def open(self, lanes: int = 1) -> list[PadLane]:
        return [PadLane() for _ in range(lanes)]

    def step(self, state: list[PadLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[PadLane], lane: int = 0) -> list[Emission]:
        ended, state[lane] = state[lane], PadLane()
        if ended.start is None or ended.clock.next is None:
            return []
        stop = ended.clock.next
        silence = self.right + -(self.left + stop - ended.start + self.right) % self.align
        return emit(len(state), lane, [_silence(stop, silence)] if silence else [])

    def _lane(self, lane: PadLane, items: np.ndarray, span: Span) -> list[Row | Cut]:
        lane.clock.advance("pad", span)
        if not len(items):
            return []
        if lane.start is not None:
            return [(items, span)]
        lane.start = span.start
        return [_silence(span.start - self.left, self.left), (items, span)] if self.left else [(items, span)]


def _silence(start: int, samples: int) -> Row:
    return np.zeros(samples, np.float32), Span(start, start + samples)


def _samples(option: str, ms: float, rate: int) -> int:
    if not 0 <= ms <= LONGEST_MS:
        raise ConfigError(f"pad: {option} is {ms!r} ms, expected 0 to {LONGEST_MS:.0f} ms")
    samples = round(ms * rate / 1000)
    if abs(samples * 1000 - ms * rate) > 1e-6 * rate:
        raise ConfigError(f"pad: {option} is {ms!r} ms, expected a whole number of samples at {rate} Hz")
    return samples


def _whole(option: str, ms: float, samples: int, align: int) -> int:
    if samples % align:
        whole = f"a multiple of {ms * align / samples:g} ms ({align} samples)"
        raise ConfigError(f"pad: {option} is {ms:g} ms ({samples} samples), expected {whole}")
    return samples
