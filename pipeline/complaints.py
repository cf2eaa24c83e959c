"""Where a fault stands and what is wrong with it; gathered, so that one run names every fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from pipeline.errors import GraphError

MOST_COMPLAINTS = 100  # beyond this a file is not a graph with faults but something else
LONGEST_VALUE = 60  # characters of a value quoted in a message


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, counted from 1; line 0 is a place without lines, such as `--set pad.left=1s`."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(slots=True)
class Complaints:
    """A list that grows while a graph is read and is raised once, at the end."""

    lines: list[str] = field(default_factory=list)

    def add(self, mark: Mark, message: str) -> None:
        """Note `message` at `mark`; the same fault met twice (a file used twice) counts once."""
        line = f"{mark}: {message}"
        if line not in self.lines and len(self.lines) < MOST_COMPLAINTS:
            self.lines.append(line)

    def settle(self) -> None:
        """Raise all that was noted.

        Raises
        ------
        GraphError   if anything was
        """
        if self.lines:
            raise GraphError(*self.lines)


def hint(name: str, known: Iterable[str], label: str = "known") -> str:
    """The cure for a misspelt `name`: the nearest of `known`, or else all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {label}: {', '.join(names)}" if names else ""


def quoted(value: object) -> str:
    """`value` through repr, shortened so that a message stays one line."""
    text = repr(value if not isinstance(value, str) else value[: LONGEST_VALUE + 1])
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
