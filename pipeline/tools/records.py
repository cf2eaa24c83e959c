"""Figures in BENCHMARKS.md: between two marks of their own, so that the next measurement replaces them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import GraphError, SinkError

FILE = "BENCHMARKS.md"


@dataclass(frozen=True, slots=True)
class Section:
    """One place in the file.

    name : in the marks, such as "cuda"; heading : above them where there are none yet
    """

    name: str
    heading: str

    @property
    def begin(self) -> str:
        command = f"python -m pipeline bench --backend {self.name} --record"
        return f"<!-- {self.name}: begin; written by {command} -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def check(self, path: Path) -> None:
        """See that `write` will find its place, before ten minutes are spent on what it is to write.

        Raises
        ------
        GraphError   if there is no such file, or one of the two marks without the other
        """
        self._divide(path)

    def write(self, text: str, path: Path) -> None:
        """Put `text` between the two marks of `path`, in place of what is there; without marks, at its end.

        Raises
        ------
        GraphError, SinkError   as `check`, and if it cannot be written
        """
        before, after = self._divide(path)
        try:
            path.write_text(f"{before}{self.begin}\n\n{text}\n\n{self.end}{after}", encoding="utf-8")
        except OSError as reason:
            raise SinkError(f"{path}: cannot be written: {reason.strerror}") from reason

    def _divide(self, path: Path) -> tuple[str, str]:
        """What stands before and after the marks."""
        text = _read(path)
        if (text.count(self.begin), text.count(self.end)) == (0, 0):
            return f"{text.rstrip()}\n\n## {self.heading}\n\n", "\n"
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end) or self.begin in rest or self.end in after:
            raise GraphError(
                f"{path}: expected the lines {self.begin!r} and {self.end!r} once each, in this order"
            )
        return before, after


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table that can be read as it stands."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[n]) for row in table) for n in range(len(head))]
    for n, row in enumerate(table):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if n == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise GraphError(
            f"bench: --record writes into {path}, which cannot be read: {why}; run it where that file is"
        ) from error
