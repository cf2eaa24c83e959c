"""YAML text to a tree of plain values that remember where they stand. The one file that imports yaml.

Graphs are read strictly: YAML 1.2 core scalars (`yes` and `off` are text, `012` is twelve, `12:30` is text),
no tags, no anchors or aliases, one document, unique keys, and bounds on size, depth and number of values. The
parser's events are walked without recursion, so no text can exhaust the stack.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from pipeline.complaints import Complaints, Mark, quoted

MOST_BYTES = 1 << 20
MOST_VALUES = 10_000
MOST_DEPTH = 32
LONGEST_NUMBER = 40  # characters; longer digits are text, and a number is then asked for by name

NULLS = ("", "~", "null", "Null", "NULL")
BOOLS = {word: word[0] in "tT" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
NANS = (".nan", ".NaN", ".NAN")

Scalar: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One scalar: its value, its text as written, and where.

    loose : it came from a shell or the environment, where quotes cannot tell 12 from "12"
    void : it stands for something already complained about; nothing more is said
    """

    value: Scalar
    text: str
    mark: Mark
    loose: bool = False
    void: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence."""

    items: tuple[Tree, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping with text keys, in the order written."""

    entries: tuple[tuple[Leaf, Tree], ...]
    mark: Mark


Tree: TypeAlias = Leaf | Row | Table


def scalar(text: str) -> Scalar:
    """What a plain scalar means by the core schema of YAML 1.2."""
    if text in NULLS:
        return None
    if text in BOOLS:
        return BOOLS[text]
    if len(text) <= LONGEST_NUMBER and INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if len(text) <= LONGEST_NUMBER and FLOAT.fullmatch(text):
        return float(text)
    if found := INFINITE.fullmatch(text):
        return -math.inf if found[1] == "-" else math.inf
    return math.nan if text in NANS else text


def loose(text: str, mark: Mark) -> Leaf:
    """A leaf from outside the file."""
    return Leaf(scalar(text), text, mark, loose=True)


def describe(tree: Tree) -> str:
    """What a tree is, for the second half of a message."""
    if isinstance(tree, Leaf):
        return "nothing" if tree.value is None else quoted(tree.text)
    return "a list" if isinstance(tree, Row) else "a mapping"


def read_tree(text: str, file: str, complaints: Complaints) -> Tree | None:
    """The one document in `text`; None if it cannot be read at all, with the reason among `complaints`."""
    if len(text) > MOST_BYTES:
        complaints.add(Mark(file), f"{len(text)} characters, expected a graph of at most {MOST_BYTES}")
        return None
    builder = _Builder(file, complaints)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if not builder.take(event):
                return None
    except yaml.MarkedYAMLError as fault:
        at = fault.problem_mark or fault.context_mark
        complaints.add(builder.mark(at) if at else Mark(file), _problem(fault))
        return None
    except yaml.reader.ReaderError as fault:
        before = text[: fault.position]
        mark = Mark(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        complaints.add(mark, f"character {fault.character!r} is not allowed in YAML")
        return None
    except (ValueError, OverflowError) as fault:  # "\Uffffffff", or %YAML with many digits
        complaints.add(Mark(file), f"not YAML: {fault}")
        return None
    return builder.root


def _problem(fault: yaml.MarkedYAMLError) -> str:
    problem = fault.problem or "not YAML"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    return f"{fault.context}, {problem}" if fault.context else problem


class _Builder:
    """Takes parser events one by one; `open` is the stack of collections not yet closed."""

    def __init__(self, file: str, complaints: Complaints):
        self.file, self.complaints = file, complaints
        self.root: Tree | None = None
        self._open: list[_Collection] = []
        self._values = self._documents = 0

    def mark(self, at: Any) -> Mark:
        return Mark(self.file, at.line + 1, at.column + 1)

    def take(self, event: Any) -> bool:
        """Whether reading goes on."""
        mark = self.mark(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            return self._document(mark)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(mark, f"alias {quoted(f'*{event.anchor}')}", "write the value out")
            self._add(Leaf(None, "", mark))
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_properties(event, mark)
            self._scalar(event.value, event.style is None, mark)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_properties(event, mark)
            self._open.append(_Collection(isinstance(event, yaml.MappingStartEvent), mark, []))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        return self._bounded(mark)

    def _scalar(self, text: str, plain: bool, mark: Mark) -> None:
        if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
            self.complaints.add(mark, "NUL and lone surrogates are not text")
            text = ascii(text)
        self._add(Leaf(scalar(text) if plain else text, text, mark))

    def _document(self, mark: Mark) -> bool:
        self._documents += 1
        if self._documents > 1:
            self.complaints.add(mark, "a second document begins here, expected one graph per file")
        return self._documents == 1

    def _bounded(self, mark: Mark) -> bool:
        if len(self._open) > MOST_DEPTH:
            self.complaints.add(mark, f"nested deeper than {MOST_DEPTH} levels")
            return False
        if self._values > MOST_VALUES:
            self.complaints.add(mark, f"more than {MOST_VALUES} values, which no graph needs")
            return False
        return True

    def _refuse_properties(self, event: Any, mark: Mark) -> None:
        if event.anchor is not None:
            self._refuse(mark, f"anchor {quoted(f'&{event.anchor}')}", "write the value out")
        if event.tag is not None and event.tag != "!":
            self._refuse(mark, f"tag {quoted(event.tag)}", "leave it out")

    def _refuse(self, mark: Mark, what: str, cure: str) -> None:
        self.complaints.add(mark, f"{what} is not read in graphs; {cure}")

    def _add(self, tree: Tree) -> None:
        self._values += 1
        if self._open:
            self._open[-1].children.append(tree)
        else:
            self.root = tree

    def _close(self) -> None:
        done = self._open.pop()
        if not done.mapping:
            return self._add(Row(tuple(done.children), done.mark))
        entries: dict[str, tuple[Leaf, Tree]] = {}
        for key, value in zip(done.children[::2], done.children[1::2], strict=True):
            if not isinstance(key, Leaf):
                self.complaints.add(key.mark, f"a key is a name, but this one is {describe(key)}")
            elif key.text in entries:
                first = entries[key.text][0].mark.line
                self.complaints.add(key.mark, f"key {quoted(key.text)} is already given on line {first}")
            else:
                entries[key.text] = (key, value)
        return self._add(Table(tuple(entries.values()), done.mark))


@dataclass(slots=True)
class _Collection:
    mapping: bool
    mark: Mark
    children: list[Tree]  # of a mapping: key, value, key, value
