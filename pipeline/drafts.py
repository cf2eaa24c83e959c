"""Nodes and ends as written: `name`, or `{name: {option: value}}`, with `as:` and `from:` set apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.complaints import Complaints, Mark, quoted
from pipeline.tree import Leaf, Table, Tree, describe

Options = dict[str, tuple[Leaf, Tree]]  # by name: the key, for its place, and the value


@dataclass(slots=True)
class Draft:
    """A node or an end as written: `stage` is its catalog name, `options` its keys and values."""

    stage: Leaf
    options: Options
    alias: Leaf | None
    origin: Leaf | None
    folder: Path | None
    name: str = ""
    upstream: str = ""
    weights: Leaf | None = None

    @property
    def mark(self) -> Mark:
        return self.stage.mark


def read_draft(tree: Tree, kind: str, folder: Path | None, complaints: Complaints) -> Draft | None:
    """A node or an end from `name` or `{name: {option: value}}`."""
    pair = named(tree, kind, f"a {kind}'s name, or {{name: {{option: value}}}}", complaints)
    if pair is None:
        return None
    stage, options = pair
    alias, origin = options.pop("as", None), options.pop("from", None)
    names = []
    for entry in (alias, origin):
        value = entry[1] if entry else None
        if value is not None and not _is_name(value):
            complaints.add(value.mark, f"expected a name, found {describe(value)}")
            value = None
        names.append(value if isinstance(value, Leaf) else None)
    return Draft(stage, options, names[0], names[1], folder)


def named(tree: Tree, kind: str, wants: str, complaints: Complaints) -> tuple[Leaf, Options] | None:
    """A name and its options, from `name` or `{name: {option: value}}`; `wants` says so in a complaint."""
    if isinstance(tree, Leaf) and _is_name(tree):
        return tree, {}
    if not isinstance(tree, Table) or len(tree.entries) != 1:
        found = "a mapping of several keys" if isinstance(tree, Table) else describe(tree)
        indent = "; is an option indented too little?" if isinstance(tree, Table) and tree.entries else ""
        complaints.add(tree.mark, f"{kind}: expected {wants}, found {found}{indent}")
        return None
    name, body = tree.entries[0]
    if isinstance(body, Leaf) and body.value is None:
        return name, {}
    if not isinstance(body, Table):
        found = describe(body)
        complaints.add(body.mark, f"options of {quoted(name.text)} are a mapping, found {found}")
        return None
    return name, {key.text: (key, value) for key, value in body.entries}


def _is_name(tree: Tree) -> bool:
    return isinstance(tree, Leaf) and isinstance(tree.value, str) and bool(tree.text)
