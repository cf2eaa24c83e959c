"""One peak for every recording: a gain that follows the loudest block so far, the same live and offline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stages.errors import ConfigError, StageError
from stages.packet import Cut, Packet, Span
from stages.stage import Clock, Emission, Port, Row, emit, in_range, per_lane, plug

SCOPES = ("running", "whole", "off")
LONGEST_WHOLE_S = 4 * 3600  # scope whole holds everything: 230 MB an hour at 16 kHz


@dataclass(slots=True)
class NormalizeLane:
    """The unfinished block (scope whole: everything), the loudest sample of those before, and their gain."""

    clock: Clock = field(default_factory=Clock)
    held: list[np.ndarray] = field(default_factory=list)
    samples: int = 0  # in `held`
    peak: float = 0.0
    gain: float | None = None  # None before the first block


class Normalize:
    """Samples scaled so that the loudest one so far would reach `peak`.

    Takes    pcm
    Gives    pcm on the same clock
    Holds    at most one block; scope whole: the whole stream, at most four hours
    Latency  one block less a sample, 80 ms; scope whole: the whole stream; scope off: none

    The gain is decided once per block of `block_ms`, counted from the stream's first sample, after the
    block was heard in full. It moves on a straight line: up over the whole block, down until the first
    sample that would overshoot. So nothing ever exceeds `peak`, and the gain jumps only where a block opens
    louder than all before. Until some block is louder than `gate_db` the gain is 1: silence is left as it
    is. Samples that are not finite count as 0.

    Parameters
    ----------
    upstream : the port of the stage before, pcm of any rate
    peak : the level to bring the loudest sample to, above 0 and at most 1
    limit_db : the most that is ever added
    gate_db : blocks whose peak is below this (relative to full scale) are silence; rooms lie near -50
    scope : running, as above; whole, one gain from the loudest sample of all; off
    block_ms : how often the running gain is decided

    Raises
    ------
    ConfigError   if an option is out of range
    StageError    from `step`, where scope whole is asked to hold more than four hours
    """

    quantum = 1

    def __init__(
        self, upstream: Port, *, peak: float = 0.95, limit_db: float = 30.0, gate_db: float = -40.0,
        scope: str = "running", block_ms: float = 80.0,
    ):  # fmt: skip
        self.takes = self.gives = plug("normalize", upstream, "pcm")
        if scope not in SCOPES:
            raise ConfigError(f"normalize: scope is {scope!r}, expected one of {', '.join(SCOPES)}")
        in_range("normalize", "peak", peak, 0.01, 1.0)
        in_range("normalize", "limit", limit_db, 0.0, 60.0)
        in_range("normalize", "gate", gate_db, -120.0, 0.0)
        in_range("normalize", "block", block_ms, 1.0, 10_000.0)
        self.peak, self.scope = peak, scope
        self.limit, self.gate = 10 ** (limit_db / 20), 10 ** (gate_db / 20)
        self.block = max(1, round(block_ms * upstream.rate / 1000))
        self.lookahead = {"running": self.block - 1, "whole": -1, "off": 0}[scope]

    def open(self, lanes: int = 1) -> list[NormalizeLane]:
        return [NormalizeLane() for _ in range(lanes)]

    def step(self, state: list[NormalizeLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[NormalizeLane], lane: int = 0) -> list[Emission]:
        ended, state[lane] = state[lane], NormalizeLane()
        stop = ended.clock.next
        if stop is None or not ended.samples:
            return []
        samples = np.concatenate(ended.held)
        return emit(len(state), lane, [(self._scale(ended, samples), Span(stop - len(samples), stop))])

    def _lane(self, lane: NormalizeLane, items: np.ndarray, span: Span) -> list[Row | Cut]:
        lane.clock.advance("normalize", span)
        if self.scope == "off":
            return [(items, span)]
        lane.held.append(np.where(np.isfinite(items), items, 0).astype(np.float32))
        lane.samples += len(items)
        if self.scope == "whole":
            if lane.samples > LONGEST_WHOLE_S * self.takes.rate:
                raise StageError("normalize: scope whole holds 4 hours already, no more; use scope running")
            return []
        if lane.samples < self.block:
            return []
        samples = np.concatenate(lane.held)
        whole = len(samples) // self.block * self.block
        lane.held, lane.samples = [samples[whole:]], len(samples) - whole
        out = [self._scale(lane, samples[i : i + self.block]) for i in range(0, whole, self.block)]
        start = span.stop - len(samples)
        return [(np.concatenate(out), Span(start, start + whole))]

    def _scale(self, lane: NormalizeLane, block: np.ndarray) -> np.ndarray:
        """One block times its gains, [samples]; the lane's peak and gain move on."""
        lane.peak = max(lane.peak, float(np.max(np.abs(block))))
        gain = min(self.limit, self.peak / lane.peak) if lane.peak > self.gate else 1.0
        before, lane.gain = gain if lane.gain is None else lane.gain, gain
        if gain == before:
            return block * np.float32(gain)
        reach = len(block)
        if gain < before:
            reach = int(np.argmax(np.abs(block) * before > self.peak))
        gains = np.full(len(block), gain)
        gains[:reach] = np.linspace(before, gain, reach, endpoint=False)
        return (block * gains).astype(np.float32)
