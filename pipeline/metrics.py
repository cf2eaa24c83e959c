"""What a run cost, read off the sample clock: items, busy seconds, drops, lag and real-time factor per stage
and session.

A meter is a plain counter that its owner writes and anyone reads; `Metrics.report` is the one shape in which
figures leave (the terminal table, the JSON file and the callable all get it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class StageMeter:
    """One stage's work over a whole run.

    items : items taken in; each lane's counted
    steps : calls of `step` and `flush`
    busy_s : seconds spent inside them
    worst_s : the longest of them
    gauges : the largest seen of `latency_s`, the stage's own share of the delay; of `queue_s` and
        `dropped_s`, audio that waited or was lost in front of it; and of what it reports itself, such as
        `blank_run` frames
    """

    items: int = 0
    steps: int = 0
    busy_s: float = 0.0
    worst_s: float = 0.0
    gauges: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, items: int = 0) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.items += items
            self.steps += 1
            self.busy_s += spent
            self.worst_s = max(self.worst_s, spent)

    def latency(self, lookahead: int, rate: int) -> None:
        """Note a stage's lookahead in samples; one that waits for the end of all audio has none to tell."""
        if lookahead >= 0:
            self.gauge({"latency_s": round(lookahead / rate, 4)})

    def gauge(self, readings: dict[str, float]) -> None:
        for name, value in readings.items():
            self.gauges[name] = max(value, self.gauges.get(name, value))


@dataclass(slots=True)
class SessionMeter:
    """One speaker's run.

    audio_s : seconds of audio taken from the source so far
    dropped_s : seconds a live source lost because the engine was behind
    queued_s : the most audio that ever waited in the intake
    lag_s : the latest, and worst_lag_s the largest, wait of a block between its arrival and its passage
        through the chain
    """

    name: str
    audio_s: float = 0.0
    dropped_s: float = 0.0
    queued_s: float = 0.0
    lag_s: float = 0.0
    worst_lag_s: float = 0.0
    pieces: int = 0

    def passed(self, lag_s: float) -> None:
        self.lag_s = lag_s
        self.worst_lag_s = max(self.worst_lag_s, lag_s)


class Metrics:
    """All meters of one run."""

    def __init__(self) -> None:
        self.stages: dict[str, StageMeter] = {}
        self.sessions: list[SessionMeter] = []
        self._started = time.perf_counter()

    def stage(self, name: str) -> StageMeter:
        return self.stages.setdefault(name, StageMeter())

    def session(self, name: str) -> SessionMeter:
        self.sessions.append(SessionMeter(name))
        return self.sessions[-1]

    def report(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON.

        `rtf` is busy seconds per second of audio, so it is the same live and offline; `wall_s` includes
        waiting.
        """
        audio = sum(s.audio_s for s in self.sessions)
        busy = sum(m.busy_s for m in self.stages.values())
        return {
            "audio_s": round(audio, 3),
            "wall_s": round(time.perf_counter() - self._started, 3),
            "busy_s": round(busy, 4),
            "rtf": round(busy / audio, 5) if audio else None,
            "stages": {
                name: {
                    "items": m.items,
                    "steps": m.steps,
                    "busy_s": round(m.busy_s, 4),
                    "mean_ms": round(1000 * m.busy_s / max(1, m.steps), 4),
                    "worst_ms": round(1000 * m.worst_s, 3),
                    "rtf": round(m.busy_s / audio, 5) if audio else None,
                    **m.gauges,
                }
                for name, m in self.stages.items()
            },
            "sessions": [
                {
                    "name": s.name,
                    "audio_s": round(s.audio_s, 3),
                    "dropped_s": round(s.dropped_s, 3),
                    "queued_s": round(s.queued_s, 3),
                    "lag_s": round(s.lag_s, 4),
                    "worst_lag_s": round(s.worst_lag_s, 4),
                    "pieces": s.pieces,
                }
                for s in self.sessions
            ],
        }
