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

    noted: list[tuple[Mark, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.noted)

    @property
    def lines(self) -> list[str]:
        """What was noted, file by file, from the top down."""
        files = list(dict.fromkeys(mark.file for mark, _ in self.noted))
        ranked = sorted(self.noted, key=lambda one: (files.index(one[0].file), one[0].line, one[0].column))
        return [f"{mark}: {message}" for mark, message in ranked]

    def add(self, mark: Mark, message: str) -> None:
        """Note `message` at `mark`; the same fault met twice (a file used twice) counts once."""
        if (mark, message) not in self.noted and len(self.noted) < MOST_COMPLAINTS:
            self.noted.append((mark, message))

    def settle(self) -> None:
        """Raise all that was noted.

        Raises
        ------
        GraphError   if anything was
        """
        if self.noted:
            raise GraphError(*self.lines)


def hint(name: str, known: Iterable[str], label: str = "known") -> str:
    """The cure for a misspelt `name`: the nearest of `known`, or else all of them."""
    names = sorted(known)
    near = [other for other in names if other.lower() == name.lower()] or get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {label}: {', '.join(names)}" if names else ""


def quoted(value: object) -> str:
    """`value` through repr, shortened so that a message stays one line."""
    text = repr(value if not isinstance(value, str) else value[: LONGEST_VALUE + 1])
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
