"""What the measurement of a processor found: a line for each figure, with its floor or peer of that run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.tools.cpu_clock import Spread
from pipeline.tools.records import Section, aligned

CPU = Section("cpu", "CPU")
NOT_TAKEN = "–"
HEAD = ("figure", "best", "median", "beside it", "best", "median", "ratio", "of medians", "wanted", "verdict")
LEGEND = (
    "Candidates take turns, in samples of a millisecond or a step; the best and the median of many are "
    "given, and the ratio is that of the best. A floor is the time for reading the same bytes once, at the "
    "speed of reading that was taken in turns with it: the ratio is the share of that speed which was "
    "reached. Weights are used in turn over more memory than a cache holds."
)
SCALES = {"ms": 1e3, "GB/s": 1e-9, "%": 1e2}  # to a unit, from seconds, bytes a second and fractions

Unit = Literal["ms", "GB/s", "%"]
Held = Literal["floor", "peer", "time", "points", ""]  # how a figure is held against what stands beside it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a ratio: at least `bound`, or below it where `below`."""

    bound: float
    below: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    ours : None where `why` says what came between
    beside, theirs : what it is held against, and how
        floor  theirs / ours, a share of what is possible      peer  theirs / ours, times as fast
        time   ours / theirs, seconds of work for a second     points  ours - theirs, in points of a per cent
    """

    figure: str
    unit: Unit
    ours: Spread | None
    beside: str = ""
    theirs: Spread | None = None
    held: Held = ""
    wanted: Wanted | None = None
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """Of the best samples."""
        return self._ratio(self.ours.best, self.theirs.best) if self.ours and self.theirs else None

    @property
    def ratio_of_medians(self) -> float | None:
        return self._ratio(self.ours.median, self.theirs.median) if self.ours and self.theirs else None

    @property
    def verdict(self) -> str:
        if self.wanted is None:
            return ""
        if self.ratio is None:
            return "not measured"
        bound, below = self.wanted.bound, self.wanted.below
        return "met" if (self.ratio < bound if below else self.ratio >= bound) else "missed"

    def _ratio(self, ours: float, theirs: float) -> float:
        if self.held == "points":
            return 100 * (ours - theirs)
        return ours / theirs if self.held == "time" else theirs / ours

    def cells(self) -> tuple[str, ...]:
        """For a row of the table."""
        mine, other = (_spread(spread, self.unit) for spread in (self.ours, self.theirs))
        ratios = (self._said(self.ratio), self._said(self.ratio_of_medians))
        bound = self.wanted
        wanted = f"{'below' if bound.below else 'at least'} {self._said(bound.bound)}" if bound else ""
        beside = (self.beside, *other) if self.beside else ("", "", "")
        return (self.figure, *mine, *beside, *ratios, wanted, self.verdict)

    def as_json(self) -> dict[str, Any]:
        """Times in ms, speeds in GB/s, rates in per cent, as `unit` says; ratios bare."""
        told: dict[str, Any] = {"figure": self.figure, "unit": self.unit}
        for name, spread in (("ours", self.ours), (self.beside, self.theirs)):
            if spread is not None:
                best, middle = (round(SCALES[self.unit] * value, 5) for value in (spread.best, spread.median))
                told[name or "beside"] = {"best": best, "median": middle, "samples": spread.samples}
        if self.ratio is not None:
            told |= {"ratio": round(self.ratio, 4), "ratio_of_medians": round(self.ratio_of_medians or 0, 4)}
        if self.wanted is not None:
            told["wanted"] = {"below" if self.wanted.below else "at_least": self.wanted.bound}
            told["verdict"] = self.verdict
        return told | ({"why": self.why} if self.why else {})

    def _said(self, ratio: float | None) -> str:
        if ratio is None:
            return "" if not self.held else NOT_TAKEN
        formats = {"floor": f"{100 * ratio:.0f} %", "peer": f"{ratio:.2f} x", "points": f"{ratio:.2f} points"}
        return formats.get(self.held, f"{ratio:.2f}")


@dataclass(frozen=True, slots=True)
class CpuReport:
    """Everything measured on one processor.

    about : machine, backend, versions, date, as plain values in the order they are shown
    """

    about: dict[str, Any]
    lines: tuple[Line, ...]

    def markdown(self) -> str:
        """What it ran on, a table, and what was left out."""
        blocks = ["\n".join(f"- {name}: {value}" for name, value in self.about.items()), LEGEND]
        blocks.append("\n".join(aligned(HEAD, [line.cells() for line in self.lines])))
        if left_out := list(self._left_out()):
            blocks += ["### Left out", "\n".join(f"- {line}" for line in left_out)]
        return "\n\n".join(blocks)

    def as_json(self) -> dict[str, Any]:
        return {"about": self.about, "figures": [line.as_json() for line in self.lines]}

    def _left_out(self) -> Iterator[str]:
        """One line for every reason."""
        for why in dict.fromkeys(line.why for line in self.lines if line.why):
            names = [line.figure for line in self.lines if line.why == why]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{names[0]}{more}: {why}"


def _spread(spread: Spread | None, unit: Unit) -> tuple[str, str]:
    if spread is None:
        return NOT_TAKEN, NOT_TAKEN
    return _number(spread.best, unit), _number(spread.median, unit)


def _number(value: float, unit: Unit) -> str:
    scaled = SCALES[unit] * value
    return f"{scaled:.1f} {unit}" if unit != "ms" or scaled >= 100 else f"{scaled:.3g} {unit}"
