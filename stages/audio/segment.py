"""Utterances out of a stream: speech passes, silence is withheld, a `Cut` stands where someone stopped."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stages.packet import Cut, Packet, Span
from stages.stage import Clock, Emission, Port, Row, emit, in_range, per_lane, plug

BLOCK_MS = 20  # one decision; long enough for a period of any voice
QUIETEST_DB, QUIET_DB = -70.0, -55.0  # the noise floor never lies below the first, and begins at the second
FLOOR_RISE_DB_S = 3.0  # a fan switched on is noise after seconds; speech dips back to the floor between words


@dataclass(slots=True)
class SegmentLane:
    """The pre-roll while waiting, an unfinished block, and what the decisions rest on."""

    clock: Clock = field(default_factory=Clock)
    held: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    decided: int = 0  # samples of `held` in blocks already decided upon: the pre-roll
    floor_db: float = QUIET_DB
    speaking: bool = False
    loud: int = 0  # blocks in a row above the upper threshold, while waiting
    quiet: int = 0  # blocks in a row below the lower threshold, while speaking
    spoken: int = 0  # blocks of this utterance


class Segment:
    """Speech found by its energy, against a noise floor that follows the room.

    Takes    pcm
    Gives    pcm on the same clock, without the silence between utterances, and a `Cut` after each
    Holds    the pre-roll, `min_speech_ms` and one block
    Latency  one block of 20 ms while someone speaks; an utterance's opening is as late as pre-roll and
             `min_speech_ms` are long, and `lookahead` states that

    Blocks of 20 ms are counted from the stream's first sample. An utterance opens when `min_speech_ms` of
    blocks in a row lie `on_db` above the floor; the `preroll_ms` before them pass first. It ends when
    `silence_ms` of blocks in a row lie less than `off_db` above it, or after `max_s`. The floor falls at
    once and rises slowly.

    Parameters
    ----------
    upstream : the port of the stage before, pcm of any rate
    on_db, off_db : thresholds above the noise floor; the gap between them is the hysteresis
    min_speech_ms : shorter noises open nothing
    silence_ms : how long a pause ends an utterance
    preroll_ms : what is kept from before an utterance opened
    max_s : an utterance is cut this long after it was recognised as one, mid-word if need be; 0: never

    Raises
    ------
    ConfigError   if an option is out of range
    """

    quantum = 1

    def __init__(
        self, upstream: Port, *, on_db: float = 12.0, off_db: float = 6.0, min_speech_ms: float = 60.0,
        silence_ms: float = 800.0, preroll_ms: float = 300.0, max_s: float = 0.0,
    ):  # fmt: skip
        self.takes = self.gives = plug("segment", upstream, "pcm")
        for option, value, least, most in (
            ("on", on_db, 0.0, 60.0),
            ("off", off_db, 0.0, on_db),
            ("min_speech", min_speech_ms, 0.0, 2_000.0),
            ("silence", silence_ms, BLOCK_MS, 60_000.0),
            ("preroll", preroll_ms, 0.0, 10_000.0),
            ("max", max_s, 0.0, 86_400.0),
        ):
            in_range("segment", option, value, least, most)
        self.on_db, self.off_db = on_db, off_db
        self.block = max(1, upstream.rate * BLOCK_MS // 1000)
        self.min_blocks = max(1, round(min_speech_ms / BLOCK_MS))
        self.silent_blocks = round(silence_ms / BLOCK_MS)
        self.max_blocks = max(1, round(max_s * 1000 / BLOCK_MS)) if max_s else 0
        self.keep = round(preroll_ms * upstream.rate / 1000) + (self.min_blocks - 1) * self.block
        self.lookahead = self.keep + self.block - 1

    def open(self, lanes: int = 1) -> list[SegmentLane]:
        return [SegmentLane() for _ in range(lanes)]

    def step(self, state: list[SegmentLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[SegmentLane], lane: int = 0) -> list[Emission]:
        ended, state[lane] = state[lane], SegmentLane()
        stop = ended.clock.next
        if stop is None or not ended.speaking or not len(ended.held):
            return []
        return emit(len(state), lane, [(ended.held, Span(stop - len(ended.held), stop))])

    def _lane(self, lane: SegmentLane, items: np.ndarray, span: Span) -> list[Row | Cut]:
        lane.clock.advance("segment", span)
        samples = np.concatenate([lane.held, np.asarray(items, np.float32)])
        begin, first, at = span.stop - len(samples), 0, lane.decided  # first: not passed on yet
        out: list[Row | Cut] = []
        for level_db in self._levels_db(samples[at:]):
            ended = self._decide(lane, level_db)
            at += self.block
            if ended:
                out += [(samples[first:at], Span(begin + first, begin + at)), Cut(begin + at)]
                first = at
            elif not lane.speaking:
                first = max(first, at - self.keep)
        if lane.speaking and at > first:
            out.append((samples[first:at], Span(begin + first, begin + at)))
            first = at
        lane.held, lane.decided = samples[first:].copy(), at - first
        return out

    def _levels_db(self, samples: np.ndarray) -> np.ndarray:
        """Mean power of whole blocks, [blocks]; full scale is 0, samples that are not finite are silent."""
        whole = samples[: len(samples) // self.block * self.block]
        blocks = np.where(np.isfinite(whole), whole, 0.0).reshape(-1, self.block).astype(np.float64)
        return 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-12)

    def _decide(self, lane: SegmentLane, level_db: float) -> bool:
        """Move on by one block; whether an utterance ended with it."""
        rise = FLOOR_RISE_DB_S * BLOCK_MS / 1000
        lane.floor_db = max(QUIETEST_DB, min(float(level_db), lane.floor_db + rise))
        if not lane.speaking:
            lane.loud = lane.loud + 1 if level_db > lane.floor_db + self.on_db else 0
            if lane.loud == self.min_blocks:
                lane.speaking, lane.loud, lane.quiet, lane.spoken = True, 0, 0, 0
            return False
        lane.spoken += 1
        lane.quiet = lane.quiet + 1 if level_db < lane.floor_db + self.off_db else 0
        if lane.quiet == self.silent_blocks:
            lane.speaking = False
            return True
        if lane.spoken != self.max_blocks:
            return False
        lane.spoken = 0
        return True
