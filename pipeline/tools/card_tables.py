"""A card's figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.tools.card_figures import CardReport, Figure, Goal, Place, winners
from pipeline.tools.records import Section, aligned

CUDA = Section("cuda", "CUDA")
NOT_TAKEN = "–"
LEGEND = (
    "Each cell has two medians, one taken after the other; the bytes or operations that cannot be avoided, "
    "by time; and in brackets the time as a multiple of that for reading those bytes once, at the speed of "
    "reading above."
)


@dataclass(frozen=True, slots=True)
class Table:
    """How one part of the report is shown.

    unit : us or ms; layouts : variants of our own that compete, of which the faster is named
    """

    part: str
    title: str
    unit: str
    layouts: tuple[str, ...] = ()


TABLES = (
    Table("memory", "Memory", "ms"),
    Table("launch", "Launches", "us"),
    Table("product", "Matrix products, Q4_0", "us", ("fragment", "rows")),
    Table("attention", "Attention, one layer", "us"),
    Table("decode", "Decoder step, one lane", "ms"),
    Table("step", "Encoder, adapter and decoder, for 80 ms of every lane", "ms"),
)
SCALE = {"us": 1e6, "ms": 1e3}


def markdown(report: CardReport) -> str:
    """All of it: what it ran on, goals, errors, a table for each part, and what was left out."""
    blocks = ["\n".join(f"- {name}: {value}" for name, value in report.about.items()), *_goals(report)]
    if report.figures:
        blocks.append(LEGEND)
    for table in TABLES:
        if figures := report.part(table.part):
            blocks += [f"### {table.title}", "\n".join(_table(report, table, figures))]
    if left_out := [*report.notes, *_left_out(report.figures)]:
        blocks += ["### Left out", "\n".join(f"- {line}" for line in left_out)]
    return "\n\n".join(blocks)


def _goals(report: CardReport) -> Iterator[str]:
    rows = [
        (goal.text, *_wanted(goal), _found(found, goal.peers), said)
        for goal, found, said in report.judged()
    ]
    yield "### Goals on an H200"
    yield "\n".join(aligned(("goal", "first", "then", "measured", "verdict"), rows))
    if report.errors:
        errors = [
            (e.op, f"{e.found:.1e}", f"{e.allowed:.1e}", "met" if e.found <= e.allowed else "missed")
            for e in report.errors
        ]
        yield "### Relative error against float64"
        yield "\n".join(aligned(("op", "found", "allowed", "verdict"), errors))


def _wanted(goal: Goal) -> tuple[str, str]:
    if goal.peers:
        return "faster than every one", f"{goal.then:g} x the best"
    return f"{goal.first:g} ms", f"{goal.then:g} ms"


def _found(value: float | None, times: bool) -> str:
    return "not measured" if value is None else f"{value:.2f} {'x' if times else 'ms'}"


def _table(report: CardReport, table: Table, figures: Sequence[Figure]) -> Iterator[str]:
    names = list(dict.fromkeys(figure.place.name for figure in figures))
    found = dict.fromkeys(figure.place for figure in figures)
    places = sorted(found, key=lambda place: names.index(place.name))
    variants = list(dict.fromkeys(figure.variant for figure in figures))
    sizes = list(dict.fromkeys(name for place in places for name, _ in place.at))
    cells = {(figure.place, figure.variant): figure for figure in figures}
    best = winners(figures, table.layouts)
    head = [table.part, *sizes, *(f"{variant}, {table.unit}" for variant in variants)]
    head += ["faster"] if best else []
    rows = []
    for place in places:
        at = dict(place.at)
        row = [place.name, *(str(at.get(name, "")) for name in sizes)]
        row += [_cell(report, cells.get((place, variant)), table.unit) for variant in variants]
        rows.append(row + ([best.get(place, "")] if best else []))
    return aligned(head, rows)


def _cell(report: CardReport, figure: Figure | None, unit: str) -> str:
    """Both medians, then the rate, and in brackets the multiple of the floor."""
    if figure is None or figure.time is None:
        return NOT_TAKEN
    said = f"{_number(SCALE[unit] * figure.time.seconds)} {_number(SCALE[unit] * figure.time.again)}"
    if figure.bytes_s:
        said += f", {figure.bytes_s / 1e12:.2f} TB/s"
    if figure.flops_s:
        said += f", {figure.flops_s / 1e12:.0f} TFLOP/s"
    floors = report.floors(figure)
    return said if floors is None else f"{said} ({floors:.2f})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _left_out(figures: Iterable[Figure]) -> Iterator[str]:
    """One line for every reason, with what it kept from being measured."""
    reasons: dict[tuple[str, str, str], list[Place]] = {}
    for figure in figures:
        if figure.time is None:
            reasons.setdefault((figure.place.part, figure.variant, figure.why), []).append(figure.place)
    for (part, variant, why), places in reasons.items():
        first = " ".join([places[0].name, *(f"{name} {value}" for name, value in places[0].at)])
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield f"{part}, {variant}, {first}{more}: {why}"
