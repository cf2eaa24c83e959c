"""The one shape every stage has: a frozen object, an explicit state, `step` and `flush`.

A stage is built once and shared by every session; everything that varies lives in the state that `open`
returns and the caller owns. `bind` pairs the two for people who want `step(samples)` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from stages.errors import ClockError, ConfigError
from stages.packet import Cut, Packet, Span

S = TypeVar("S")
Emission = Packet | Cut
Row = tuple[Any, Span]  # one lane's items, [item, ...] or a list of texts, and the samples they speak for
LaneState = TypeVar("LaneState")


@dataclass(frozen=True, slots=True)
class Port:
    """A plug: what flows through it, and on which clock.

    kind : pcm, mel, frames, codes, tokens or text
    rate : Hz of the sample clock
    hop : samples of that clock per item; 1 for pcm, 160 for mel, 1280 for tokens
    width : values per item; 0 where it does not apply (text)
    where : host or device
    delay : samples by which an item lags behind the audio it speaks of; a delayed-streams model says it of
        its tokens
    """

    kind: str
    rate: int
    hop: int = 1
    width: int = 1
    where: str = "host"
    delay: int = 0

    def __str__(self) -> str:
        return f"{self.kind} (rate {self.rate}, hop {self.hop}, width {self.width}, {self.where})"


def pcm(rate: int) -> Port:
    """Mono samples at `rate` Hz, nominally in [-1, 1]."""
    return Port("pcm", rate)


class Stage(Protocol[S]):
    """One input, one output, no waiting.

    takes, gives : the two plugs; `takes` comes from the upstream port handed to the constructor
    quantum : `step` accepts whole multiples of this many items; `bind`, `operator` and the lanes regroup for
        you
    lookahead : samples of the future needed, this stage's share of the latency; -1: all of them, not for live
        use

    A stage that depends on more than its plug may say so in an attribute `asks`: by class name of a stage
    above, the attributes it must have. A graph is refused where they differ. `lane_bytes`, where there is
    such an attribute, is what a full lane keeps; lanes are refused where memory has no room for them.
    """

    takes: Port
    gives: Port
    quantum: int
    lookahead: int

    def open(self, lanes: int = 1) -> S:
        """A fresh state for `lanes` independent streams."""
        ...

    def step(self, state: S, packet: Packet) -> Sequence[Emission]:
        """Consume `packet`, update `state`, return what is now known (often nothing)."""
        ...

    def flush(self, state: S, lane: int = 0) -> Sequence[Emission]:
        """Emit all that `lane` still holds and leave it as good as new."""
        ...


def plug(
    stage: str, upstream: Port, kind: str, rate: int | None = None, hop: int | None = None,
    width: int | None = None,
) -> Port:
    """Check that `upstream` fits a stage's input and return it; what is None is not asked for.

    Raises
    ------
    ConfigError   naming the stage, what it takes and what it was given
    """
    asked = {name: n for name, n in (("rate", rate), ("hop", hop), ("width", width)) if n is not None}
    if upstream.kind == kind and all(getattr(upstream, name) == n for name, n in asked.items()):
        return upstream
    wants = kind + "".join(f", {name} {n}" for name, n in asked.items())
    raise ConfigError(f"{stage} takes {wants}, but was given {upstream}")


def in_range(stage: str, option: str, value: float, least: float, most: float) -> None:
    """Check an option of a stage; NaN lies in no range.

    Raises
    ------
    ConfigError   naming the stage, the option, its value and the range
    """
    if not least <= value <= most:
        raise ConfigError(f"{stage}: {option} is {value!r}, expected {least} to {most}")


def per_lane(
    states: list[LaneState], packet: Packet, one: Callable[[LaneState, np.ndarray, Span], Sequence[Row | Cut]]
) -> list[Emission]:
    """Run `one(state, items, span)` for every active lane and gather the rows into packets.

    Each row becomes a packet of all lanes in which only its own lane is active, in lane order; with one lane
    that is the ordinary case and costs nothing.
    """
    out: list[Emission] = []
    for lane, span in enumerate(packet.spans):
        if span is not None:
            out += emit(len(states), lane, one(states[lane], packet.data[lane], span))
    return out


def emit(lanes: int, lane: int, rows: Sequence[Row | Cut]) -> list[Emission]:
    """Packets of `lanes` lanes that carry `rows` on `lane`; cuts are readdressed to it."""
    return [Cut(row.at, lane) if isinstance(row, Cut) else _packet(lanes, lane, *row) for row in rows]


def _packet(lanes: int, lane: int, items: Any, span: Span) -> Packet:
    spans = tuple(span if n == lane else None for n in range(lanes))
    if isinstance(items, list) or lanes == 1:
        return Packet(items if isinstance(items, list) else items[None], spans)
    data = np.zeros((lanes, *items.shape), items.dtype)
    data[lane] = items
    return Packet(data, spans)


class Clock:
    """Follows one lane's spans and refuses a packet that does not continue the last one."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next: int | None = None

    def advance(self, stage: str, span: Span) -> None:
        if self.next is not None and span.start != self.next:
            raise ClockError(f"{stage}: expected a packet from sample {self.next}, got one from {span.start}")
        self.next = span.stop


class Regroup:
    """Gathers one lane's items until a whole multiple of `quantum` is there.

    `push` returns rows of whole quanta; `drain` drops the remainder (the tail of a stream that was not padded
    to a whole token carries no complete item) and starts afresh.
    """

    __slots__ = ("_held", "hop", "quantum")

    def __init__(self, quantum: int, hop: int):
        self.quantum, self.hop = quantum, hop
        self._held: np.ndarray | None = None  # fewer than `quantum` items

    def push(self, items: np.ndarray, span: Span) -> list[Row]:
        if self.quantum == 1:
            return [(items, span)]
        if self._held is not None:
            items = np.concatenate([self._held, items])
        start = span.stop - len(items) * self.hop
        whole = len(items) // self.quantum * self.quantum
        self._held = np.array(items[whole:]) if whole < len(items) else None  # a copy: `items` are borrowed
        return [(items[:whole], Span(start, start + whole * self.hop))] if whole else []

    def drain(self) -> None:
        self._held = None


class Bound:
    """A stage and one stream's state together: `step(samples)` and `flush()`, no runtime, no clock keeping.

    `step` takes items [item, ...] (or a `Packet`) and numbers the samples itself, from 0 and onwards. What a
    device stage answers is borrowed until its next step: copy what is to be kept.
    """

    def __init__(self, stage: Stage[Any]):
        self.stage = stage
        self.state = stage.open()
        self._regroup = Regroup(stage.quantum, stage.takes.hop)
        self._at = 0

    def step(self, items: np.ndarray | Packet) -> list[Emission]:
        """Push items through; a `Cut` among the answers means the stage ended an utterance there."""
        if isinstance(items, Packet):
            data, span = items.data[0], items.spans[0]
            assert span is not None, "a bound stage has one lane, and it is never idle"
        else:
            data = np.asarray(items)
            span = Span(self._at, self._at + len(data) * self.stage.takes.hop)
        self._at = span.stop
        rows = self._regroup.push(data, span)
        return [p for row, at in rows for p in self.stage.step(self.state, Packet(row[None], (at,)))]

    def flush(self) -> list[Emission]:
        """Emit what is held; the next `step` starts a new stream at sample 0."""
        self._regroup.drain()
        self._at = 0
        return list(self.stage.flush(self.state))


def bind(stage: Stage[Any]) -> Bound:
    """`stage` with a state of its own, for use without a runtime."""
    return Bound(stage)
