"""What the measurement of a GPU found: one kind of figure, tables of them, and the goals they are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.tools.card_clock import Timing

COPIED = "read and written"  # variants of the part "memory"
READ = "read"


@dataclass(frozen=True, slots=True)
class Place:
    """What was timed, whoever did it: a row of a table.

    at : sizes, by name, such as (("rows", 4),)
    """

    part: str
    name: str
    at: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One time.

    variant : which of several ways, ours or a peer's: a column of a table
    time : None where `why` says what came between
    nbytes : that cannot but be moved this way; flops : that cannot but be done; 0 where that says nothing
    """

    place: Place
    variant: str
    time: Timing | None
    nbytes: int = 0
    flops: int = 0
    why: str = ""

    @property
    def bytes_s(self) -> float | None:
        return self.nbytes / self.time.seconds if self.time and self.nbytes else None

    @property
    def flops_s(self) -> float | None:
        return self.flops / self.time.seconds if self.time and self.flops else None


@dataclass(frozen=True, slots=True)
class Error:
    """How far an op is from float64 on the same stored weights, relative, by norm; and how far it may be."""

    op: str
    found: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted of one figure, in ms, at first and then; `peers` compares with the best of those."""

    text: str
    place: Place
    first: float
    then: float
    peers: bool = False


def decode_place(position: int) -> Place:
    """One lane's decoder step."""
    return Place("decode", "decode", (("lanes", 1), ("position", position)))


def tick_place(lanes: int, position: int) -> Place:
    """80 ms of every lane, through all three stages."""
    return Place("step", "tick", (("lanes", lanes), ("position", position)))


GOALS = (  # on an H200
    Goal("Q4_0 decode step at 1000 positions", decode_place(1000), 0.85, 0.66),
    Goal("80 ms tick, one stream", tick_place(1, 1000), 1.2, 0.9),
    Goal("80 ms tick, 64 streams at 1000 positions", tick_place(64, 1000), 10, 8),
    Goal("peers, same step", decode_place(1000), 1, 2, peers=True),
)
OURS = "f16"  # the variant of a step that goals speak of: keys and values as f16
EAGER, COMPILED = PEERS = ("transformers bf16", "transformers bf16 compiled")


@dataclass(frozen=True, slots=True)
class CardReport:
    """Everything measured on one card.

    about : machine, card, driver, versions, date, as plain values in the order they are shown
    """

    about: dict[str, Any]
    figures: tuple[Figure, ...]
    errors: tuple[Error, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def read_bytes_s(self) -> float | None:
        """How fast this card reads its memory: what the floors are made of."""
        return next((f.bytes_s for f in self.part("memory") if f.variant == READ and f.bytes_s), None)

    def part(self, part: str) -> list[Figure]:
        return [figure for figure in self.figures if figure.place.part == part]

    def ms(self, place: Place, variant: str) -> float | None:
        """Milliseconds, the better of both runs; None if it was not taken."""
        for figure in self.figures:
            if (figure.place, figure.variant) == (place, variant) and figure.time:
                return 1000 * min(figure.time.seconds, figure.time.again)
        return None

    def floors(self, figure: Figure) -> float | None:
        """The time of `figure` as a multiple of that for reading its bytes once."""
        if not (figure.bytes_s and self.read_bytes_s):
            return None
        return self.read_bytes_s / figure.bytes_s

    def judged(self) -> Iterator[tuple[Goal, float | None, str]]:
        """Every goal with what was measured and a verdict."""
        for goal in GOALS:
            ours = self.ms(goal.place, OURS)
            if not goal.peers:
                yield goal, ours, verdict(ours, goal.first, goal.then)
                continue
            theirs = [ms for peer in PEERS if (ms := self.ms(goal.place, peer)) is not None]
            times = min(theirs) / ours if ours and theirs else None
            yield goal, times, verdict(times and -times, -goal.first, -goal.then)

    def as_json(self) -> dict[str, Any]:
        """One object; times in the unit their names end in."""
        return {
            "about": self.about,
            "goals": [
                {
                    "goal": goal.text, "first": goal.first, "then": goal.then,
                    "measured": found and round(found, 4), "verdict": said,
                }
                for goal, found, said in self.judged()
            ],
            "errors": [{"op": e.op, "relative": e.found, "allowed": e.allowed} for e in self.errors],
            "figures": [self._figure(figure) for figure in self.figures],
            "notes": list(self.notes),
        }  # fmt: skip

    def _figure(self, figure: Figure) -> dict[str, Any]:
        place, time = figure.place, figure.time
        told: dict[str, Any] = {"part": place.part, "name": place.name, **dict(place.at)}
        told["variant"] = figure.variant
        if time is None:
            return told | {"why": figure.why}
        told |= {"us": round(1e6 * time.seconds, 3), "us_again": round(1e6 * time.again, 3)}
        if figure.nbytes:
            told |= {"bytes": figure.nbytes, "tb_s": round((figure.bytes_s or 0) / 1e12, 4)}
        if (floors := self.floors(figure)) is not None:
            told["floors"] = round(floors, 3)
        if figure.flops_s:
            told |= {"flops": figure.flops, "tflop_s": round(figure.flops_s / 1e12, 2)}
        return told


def verdict(found: float | None, first: float, then: float) -> str:
    """What became of a goal where less is better."""
    if found is None:
        return "not measured"
    return "met" if found <= then else "first met" if found <= first else "missed"


def winners(figures: Sequence[Figure], variants: Sequence[str]) -> dict[Place, str]:
    """For each place the fastest of `variants`, where at least two of them were timed there."""
    timed: dict[Place, dict[str, float]] = {}
    for figure in figures:
        if figure.time and figure.variant in variants:
            timed.setdefault(figure.place, {})[figure.variant] = min(figure.time.seconds, figure.time.again)
    return {place: min(by, key=by.__getitem__) for place, by in timed.items() if len(by) > 1}
