"""What a graph lets its caller choose: `params`, `$name` where a value stands, and `${NAME:-default}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.complaints import Complaints, hint, quoted
from pipeline.errors import GraphError
from pipeline.options import Option, convert
from pipeline.tree import Leaf, Row, Table, Tree, loose

KINDS = {
    "path": Option("", "", (str,)),
    "str": Option("", "", (str,)),
    "duration": Option("", "", (float,), unit="ms"),
    "int": Option("", "", (int,)),
    "float": Option("", "", (float,)),
    "bool": Option("", "", (bool,)),
}
NAME = re.compile(r"[a-z][a-z0-9_]*")
REFERENCE = re.compile(r"\$([a-z][a-z0-9_]*)")
ENVIRONMENT = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|\$\{")


@dataclass(frozen=True, slots=True)
class Param:
    """One declared parameter.

    type : path, duration, int, float, str, bool or choice; `choices` are its words then
    default : as written, None where there is none; value : checked, a duration in milliseconds
    """

    name: str
    type: str
    default: str | None
    help: str
    value: Any
    choices: tuple[Any, ...] = ()


@dataclass(slots=True)
class Scope:
    """The parameters one file declares, and the values that stand for them."""

    environ: Mapping[str, str]
    folder: Path | None
    complaints: Complaints
    params: dict[str, Param] = field(default_factory=dict)
    leaves: dict[str, Leaf | None] = field(default_factory=dict)

    def fill(self, tree: Tree) -> Tree:
        """`tree` with `$name` and `${NAME}` replaced in its values; keys stay as they are."""
        if isinstance(tree, Row):
            return Row(tuple(self.fill(item) for item in tree.items), tree.mark)
        if isinstance(tree, Table):
            return Table(tuple((key, self.fill(value)) for key, value in tree.entries), tree.mark)
        if not isinstance(tree.value, str) or "$" not in tree.value:
            return tree
        if not (found := REFERENCE.fullmatch(tree.value)):
            return self._environment(tree)
        if found[1] not in self.leaves:
            cure = hint(found[1], self.leaves, "params") or "; this file declares no params"
            self.complaints.add(tree.mark, f"no parameter is called {found[1]!r}{cure}")
        return self.leaves.get(found[1]) or Leaf(None, "", tree.mark, void=True)

    def declare(self, table: Table, given: Mapping[str, Leaf]) -> None:
        """Read a `params:` mapping; `given` values stand before defaults."""
        for key, body in table.entries:
            if not NAME.fullmatch(key.text):
                self.complaints.add(key.mark, f"a parameter's name is of a-z, 0-9, _, not {quoted(key.text)}")
            elif not isinstance(body, Table):
                self.complaints.add(key.mark, f"parameter {key.text!r} needs {{type: ..., default: ...}}")
            else:
                self._one(key, body, given.get(key.text))

    def _one(self, key: Leaf, body: Table, given: Leaf | None) -> None:
        fields = {entry.text: self._environment(v) if isinstance(v, Leaf) else v for entry, v in body.entries}
        for entry, _ in body.entries:
            if entry.text not in ("type", "default", "help", "choices"):
                cure = hint(entry.text, ("type", "default", "help", "choices"), "keys")
                self.complaints.add(entry.mark, f"parameter {key.text!r} has no {quoted(entry.text)}{cure}")
        self.leaves[key.text] = None
        option, choices = self._kind(key, fields)
        default = fields.get("default")
        if isinstance(default, Leaf) and _text(fields.get("type")) == "path":
            default = resolve(default, self.folder)
        leaf = given or default
        if option is None or leaf is None or (isinstance(leaf, Leaf) and leaf.void):
            if leaf is None:
                cure = f"; give it with --{key.text.replace('_', '-')}"
                self.complaints.add(key.mark, f"parameter {key.text!r} has no default and no value{cure}")
            return
        value = None
        try:
            value = convert(option, leaf)
            self.leaves[key.text] = leaf if isinstance(leaf, Leaf) else None
        except GraphError as fault:
            self.complaints.add(leaf.mark, f"parameter {key.text!r}: {fault}")
        kind, told = _text(fields.get("type")), _text(fields.get("help"))
        shown = default.text if isinstance(default, Leaf) else None
        self.params[key.text] = Param(key.text, kind, shown, told, value, choices)

    def _kind(self, key: Leaf, fields: Mapping[str, Tree]) -> tuple[Option | None, tuple[Any, ...]]:
        name, words = _text(fields.get("type")), fields.get("choices")
        if name in KINDS and words is None:
            return KINDS[name], ()
        if name == "choice" and isinstance(words, Row) and words.items:
            choices = tuple(word.value for word in words.items if isinstance(word, Leaf))
            return Option("", "", (), choices), choices
        if name == "choice" or words is not None:
            self.complaints.add(key.mark, f"parameter {key.text!r}: type: choice goes with choices: [a, b]")
        else:
            cure = hint(name, (*KINDS, "choice"), "types")
            self.complaints.add(key.mark, f"parameter {key.text!r} has no known type, found {name!r}{cure}")
        return None, ()

    def _environment(self, leaf: Leaf) -> Leaf:
        if not isinstance(leaf.value, str) or "$" not in leaf.text:
            return leaf
        wrong: list[str] = []

        def value(found: re.Match[str]) -> str:
            if found[0] == "$$":
                return "$"
            if found[1] is None:
                wrong.append("${ opens no variable; write ${NAME} or ${NAME:-default}, or $$ for a dollar")
                return ""
            text = self.environ.get(found[1])
            if not text and found[2] is not None:
                return found[2]
            if text is None:
                cure = f"${{{found[1]}:-default}}"
                wrong.append(f"{found[1]} is not in the environment; set it or write {cure}")
            return text or ""

        text = ENVIRONMENT.sub(value, leaf.text)
        for message in wrong:
            self.complaints.add(leaf.mark, message)
        if wrong:
            return Leaf(None, "", leaf.mark, void=True)
        return leaf if text == leaf.text else loose(text, leaf.mark)


def resolve(leaf: Leaf, folder: Path | None) -> Leaf:
    """A relative path that is not here but stands beside the graph file, as a path to there; else itself.

    A path from outside the file (the command line) is always taken from here.
    """
    outside = not leaf.mark.line or folder is None
    if outside or not leaf.text or Path(leaf.text).is_absolute() or exists(leaf.text):
        return leaf
    beside = str(Path(folder or "") / leaf.text)
    return Leaf(beside, beside, leaf.mark, leaf.loose) if exists(beside) else leaf


def exists(path: str) -> bool:
    """Whether there is a file or folder; a path the system cannot even ask about is not there."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _text(tree: Tree | None) -> str:
    return tree.text if isinstance(tree, Leaf) else ""
