"""What a graph file and the files it uses say, in one row: names given, `from:` resolved, options as written.

`Reader` opens files and keeps the loop of `use:` finite; `Part` is what a file comes to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from pipeline.complaints import Complaints, Mark, hint, quoted
from pipeline.drafts import Draft, named, read_draft
from pipeline.params import Param, Scope, exists, resolve
from pipeline.tree import MOST_BYTES, Leaf, Row, Table, Tree, describe, read_tree

KEYS = ("use", "clock", "params", "weights", "backend", "chain", "source", "sink", "sinks", "lanes")
RESERVED = frozenset({*KEYS, "lane", "node", "graph"})  # not for `as:`; --set reads these words
MOST_FILES = 64  # one file that uses two, each of which uses two, would otherwise grow without bound

Given = Mapping[str, Leaf]  # values of params from outside


@dataclass(slots=True)
class Part:
    """A file's share of a graph; `tails` are the nodes where its rows end, a sink's upstream by default."""

    nodes: list[Draft] = field(default_factory=list)
    source: Draft | None = None
    sinks: list[Draft] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)
    clock: Leaf | None = None
    weights: Leaf | None = None
    backend: Leaf | Table | None = None
    lanes: Table | None = None
    params: dict[str, Param] = field(default_factory=dict)


class Reader:
    """Reads files into parts; every fault goes to `complaints`."""

    def __init__(self, environ: Mapping[str, str], complaints: Complaints):
        self.environ, self.complaints = environ, complaints
        self._files = 0

    def read(self, text: str, file: str, folder: Path | None, given: Given, within: list[Path]) -> Part:
        """The part that `text` describes; `within` are the files being read around it."""
        before = len(self.complaints)
        tree = read_tree(text, file, self.complaints)
        if isinstance(tree, Table):
            return _Assembly(self, tree, folder, given, within).part
        if len(self.complaints) == before:
            found = describe(tree) if tree else "nothing"
            self.complaints.add(Mark(file, 1, 1), f"expected a mapping such as chain: [...], found {found}")
        return Part()

    def open(self, path: Path, at: Mark | None, given: Given, within: list[Path]) -> Part:
        """The part in the file at `path`, used at `at` (None: by the caller)."""
        place, self._files = at or Mark(shown(path)), self._files + 1
        resolved = path.resolve()
        if resolved in within:
            loop = " -> ".join(p.name for p in [*within[within.index(resolved) :], resolved])
            self.complaints.add(place, f"files use each other in a circle: {loop}")
            return Part()
        if self._files > MOST_FILES:
            self.complaints.add(place, f"more than {MOST_FILES} files are used")
            return Part()
        try:
            with path.open("rb") as stream:
                raw = stream.read(MOST_BYTES + 1)
            if len(raw) > MOST_BYTES:
                self.complaints.add(place, f"{shown(path)} is larger than {MOST_BYTES} bytes; is it a graph?")
                return Part()
            text = raw.decode("utf-8-sig")
        except OSError as fault:
            self.complaints.add(place, f"cannot read {shown(path)!r}: {fault.strerror or fault}")
        except UnicodeDecodeError as fault:
            self.complaints.add(place, f"{shown(path)} is not UTF-8 (byte {fault.start}); is it a graph?")
        else:
            return self.read(text, shown(path), path.parent, given, [*within, resolved])
        return Part()


class _Assembly:
    """One file on its way from tree to part."""

    def __init__(self, reader: Reader, table: Table, folder: Path | None, given: Given, within: list[Path]):
        self.reader, self.folder, self.given, self.within = reader, folder, given, within
        self.complaints = reader.complaints
        self.scope = Scope(reader.environ, folder, reader.complaints)
        self.part = Part()
        self.keys = {key.text: key for key, _ in table.entries}
        for key, _ in table.entries:
            if key.text not in KEYS:
                self.complaints.add(key.mark, f"unknown key {quoted(key.text)}{hint(key.text, KEYS, 'keys')}")
        self._params(table)
        body = {key.text: self.scope.fill(value) for key, value in table.entries if key.text != "params"}
        if "chain" not in body and "use" not in body:
            self.complaints.add(table.mark, "a graph needs chain: or use:")
        for used, at in self._uses(body):
            self._include(used, at)
        self._nodes(body)
        self._scalars(body)
        self._ends(body)

    def _params(self, table: Table) -> None:
        for key, value in table.entries:
            if key.text == "params" and isinstance(value, Table):
                self.scope.declare(value, self.given)
            elif key.text == "params":
                self.complaints.add(key.mark, f"params is a mapping of declarations, found {describe(value)}")
        self.part.params.update(self.scope.params)

    def _uses(self, body: Mapping[str, Tree]) -> list[tuple[Part, str]]:
        """Each used part, with the prefix its names get."""
        if "use" not in body:
            return []
        entries = _items(body["use"])
        many = len(entries) > 1
        found: list[tuple[Part, str]] = []
        taken: set[str] = set()
        for entry in entries:
            pair = named(entry, "use", "a file name, or {file name: {param: value}}", self.complaints)
            if pair is None:
                continue
            leaf, options = pair
            alias = options.pop("as", None)
            stem = alias[1].text if alias and isinstance(alias[1], Leaf) else Path(leaf.text).stem
            prefix = stem if many or alias else ""
            number = 2
            while prefix in taken:
                prefix, number = f"{stem}-{number}", number + 1
            taken.add(prefix or stem)
            found.append((self._use(leaf, options), prefix))
        return found

    def _use(self, leaf: Leaf, options: Mapping[str, tuple[Leaf, Tree]]) -> Part:
        fixed = {name: value for name, (_, value) in options.items() if isinstance(value, Leaf)}
        own = {name: value for name, value in self.scope.leaves.items() if value is not None}
        path = next((p for p in self._places(leaf.text) if exists(str(p))), None)
        if path is None:
            where = f"beside this file nor among the installed graphs{hint(leaf.text, installed(), 'those')}"
            self.complaints.add(leaf.mark, f"there is no {quoted(leaf.text)} {where}")
            return Part()
        part = self.reader.open(path, leaf.mark, dict(self.given) | own | fixed, self.within)
        for name, (key, _) in options.items():
            if name not in part.params:
                cure = hint(name, part.params, "its params")
                self.complaints.add(key.mark, f"{leaf.text} has no parameter {quoted(name)}{cure}")
        part.params = {n: p for n, p in part.params.items() if n not in fixed and n not in self.scope.params}
        return part

    def _places(self, name: str) -> Iterator[Path]:
        if name:
            yield from [self.folder / name] if self.folder else []
            yield graphs_folder() / name

    def _include(self, used: Part, prefix: str) -> None:
        part = self.part
        renamed = {node.name: f"{prefix}.{node.name}" if prefix else node.name for node in used.nodes}
        for node in [*used.nodes, *used.sinks]:
            node.upstream = renamed.get(node.upstream, node.upstream)
        for node in used.nodes:
            node.name = renamed[node.name]
        part.nodes += used.nodes
        part.sinks += used.sinks
        part.tails += [renamed[tail] for tail in used.tails]
        part.params = used.params | part.params
        first = len(part.nodes) == len(used.nodes)
        part.clock = used.clock if first else _agreed(part.clock, used.clock)
        part.weights = part.weights or used.weights
        for key in ("source", "backend", "lanes"):
            mine, theirs = getattr(part, key), getattr(used, key)
            if mine and theirs and key not in self.keys and not _same(mine, theirs):
                cure = f"write {key}: in this file"
                self.complaints.add(theirs.mark, f"two used files bring {key}: (see {mine.mark}); {cure}")
            setattr(part, key, mine or theirs)

    def _nodes(self, body: Mapping[str, Tree]) -> None:
        rows = body.get("chain", Row((), Mark("")))
        if not isinstance(rows, Row):
            self.complaints.add(self.keys["chain"].mark, f"chain is a list of stages, found {describe(rows)}")
            return
        tails = self.part.tails
        above = tails[0] if len(tails) == 1 else "source" if not self.part.nodes else ""
        for item in rows.items:
            draft = read_draft(item, "stage", self.folder, self.complaints)
            if draft is None:
                continue
            draft.name = self._name(draft, [node.name for node in self.part.nodes], "node")
            draft.upstream = self._upstream(draft, above)
            self.part.nodes.append(draft)
            self.part.tails = [t for t in self.part.tails if t != draft.upstream] + [draft.name]
            above = draft.name
        self._check_weights(body)

    def _check_weights(self, body: Mapping[str, Tree]) -> None:
        leaf = body.get("weights")
        if leaf is None or (isinstance(leaf, Leaf) and leaf.void):
            return
        if not isinstance(leaf, Leaf) or not isinstance(leaf.value, str):
            self.complaints.add(leaf.mark, f"weights is a path, found {describe(leaf)}")
            return
        self.part.weights = leaf = resolve(leaf, self.folder)
        for node in self.part.nodes:
            node.weights = leaf

    def _scalars(self, body: Mapping[str, Tree]) -> None:
        clock, backend = body.get("clock"), body.get("backend")
        if isinstance(clock, Leaf):
            self.part.clock = clock
        elif clock is not None:
            self.complaints.add(clock.mark, f"clock is one value, found {describe(clock)}")
        if isinstance(backend, Leaf | Table):
            self.part.backend = backend
        elif backend is not None:
            wanted = "a name, or {name: cuda, kv: q8}"
            self.complaints.add(backend.mark, f"backend is {wanted}, found {describe(backend)}")
        lanes = body.get("lanes")
        if isinstance(lanes, Table):
            self.part.lanes = lanes
        elif lanes is not None:
            self.complaints.add(lanes.mark, f"lanes is {{count: 4, wait: 20ms}}, found {describe(lanes)}")

    def _ends(self, body: Mapping[str, Tree]) -> None:
        if "source" in body and (draft := read_draft(body["source"], "source", self.folder, self.complaints)):
            for leaf in (draft.alias, draft.origin):
                if leaf:
                    self.complaints.add(leaf.mark, "a source has no from: and no as:; all comes from it")
            self.part.source = replace(draft, name=draft.stage.text)
        if "sink" in body and "sinks" in body:
            self.complaints.add(self.keys["sinks"].mark, "give sink: or sinks:, not both")
        elif isinstance(body.get("sink"), Row):
            self.complaints.add(self.keys["sink"].mark, "sink takes one; a list is spelled sinks:")
        elif "sink" in body or "sinks" in body:
            self.part.sinks = []
            for item in _items(body.get("sinks") or body["sink"]):
                if draft := read_draft(item, "sink", self.folder, self.complaints):
                    draft.name = self._name(draft, [sink.name for sink in self.part.sinks], "sink")
                    tails = self.part.tails
                    above = tails[-1] if self._single(draft, tails) else "source"
                    draft.upstream = self._upstream(draft, above)
                    self.part.sinks.append(draft)

    def _single(self, draft: Draft, tails: list[str]) -> bool:
        if len(tails) > 1 and draft.origin is None:
            self.complaints.add(draft.mark, f"rows end at {', '.join(tails)}; say which with from:")
        return bool(tails)

    def _name(self, draft: Draft, taken: list[str], noun: str) -> str:
        last = draft.stage.text.rpartition(":")[2].rpartition(".")[2]
        name = draft.alias.text if draft.alias else last
        if draft.alias and (name in RESERVED or "." in name or "=" in name):
            self.complaints.add(draft.alias.mark, f"{quoted(name)} cannot name a {noun}; choose another word")
        if name in taken:
            self.complaints.add(draft.mark, f"two {noun}s are called {quoted(name)}; name this one with as:")
            name = f"{name}-{len(taken) + 1}"
        return name

    def _upstream(self, draft: Draft, above: str) -> str:
        if draft.origin is None:
            if not above:
                ends = ", ".join(self.part.tails)
                self.complaints.add(draft.mark, f"rows end at {ends}; say which this one follows with from:")
            return above or "source"
        wanted = draft.origin.text
        known = {"source": "source"} | {node.name: node.name for node in self.part.nodes}
        by_stage = [node.name for node in self.part.nodes if node.stage.text == wanted]
        if wanted in known:
            return known[wanted]
        if len(by_stage) == 1:
            return by_stage[0]
        cure = f"; it could be {' or '.join(by_stage)}" if by_stage else hint(wanted, known, "above")
        self.complaints.add(draft.origin.mark, f"from: no node above is called {quoted(wanted)}{cure}")
        return "source"


def shown(path: Path) -> str:
    """`path` as a message gives it: relative where it lies below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def graphs_folder() -> Path:
    """Where the graphs that ship are."""
    return Path(str(files("graphs")))


def installed() -> list[str]:
    """Names of the graphs that ship."""
    return sorted(path.name for path in graphs_folder().glob("*.yaml"))


def _items(tree: Tree) -> tuple[Tree, ...]:
    return tree.items if isinstance(tree, Row) else (tree,)


def _same(one: Draft | Leaf | Table, other: Draft | Leaf | Table) -> bool:
    """Whether two used files say the same: from one place, or one value."""
    values = [end.value if isinstance(end, Leaf) else None for end in (one, other)]
    return one.mark == other.mark or (values[0] is not None and values[0] == values[1])


def _agreed(one: Leaf | None, other: Leaf | None) -> Leaf | None:
    return one if one and other and one.value == other.value else None
