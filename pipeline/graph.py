"""YAML text to a `Graph`: what to build, checked, with every fault named at once. Builds nothing.

```
chain:                          a row of stages; each takes from the one above, or from: another
  - resample: {to: 16000}       a name, or a name with options: the constructor's keywords, units in the value
  - mel: {from: resample}       from: follows another node (or `source`); as: names a node when two are alike
use: voxtral.yaml               the chain of another file; a list makes each a branch from the source
source: {file: {path: a.wav}}   one end
sink: {lines: {}}               the other; or sinks: [...]
params: {delay: {type: duration, default: 480ms}}    $delay stands for it; ${NAME:-default}: environment
weights, clock, lanes: {count: 4, wait: 20ms}
backend: cuda                   or auto, the best that opens; or {name: cuda, kv: q8}, with options of its own
```

Relative paths that are read (weights, a source's files) are taken from the current folder, else from beside
the file that names them. Stage classes are imported for their signatures alone, a `module:Class` only where
the caller allows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import backends, overrides
from pipeline.catalog import find
from pipeline.complaints import Complaints, Mark, hint, quoted
from pipeline.drafts import Draft
from pipeline.errors import GraphError
from pipeline.options import Option, convert, options_of
from pipeline.params import Param, resolve
from pipeline.parts import Part, Reader, graphs_folder, installed
from pipeline.tree import Leaf, Table, Tree, describe, loose

MOST_LANES = 4096
NOWHERE = Leaf(None, "", Mark(""))
PATHS = frozenset({"path", "files"})  # options of a source that name something to read
CLOCK = Option("clock", "clock", (int,), unit="Hz")
LANES = {
    "count": Option("count", "count", (int,)),
    "wait": Option("wait", "wait_ms", (float,), unit="ms"),
}

__all__ = ["End", "Graph", "GraphError", "LaneOptions", "Mark", "Node", "Param", "load_graph", "parse_graph"]


@dataclass(frozen=True, slots=True)
class Node:
    """A stage to build.

    stage : catalog name or module:Class
    name : unique in the graph
    upstream : the node it follows, or "source"
    options : constructor keywords, as in `cls(upstream, **options)`
    weights : what its checkpoint is read from
    """

    stage: str
    name: str
    upstream: str
    options: dict[str, Any]
    mark: Mark
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class End:
    """A source (upstream "") or a sink to build as `cls(**options)`."""

    kind: str
    name: str
    upstream: str
    options: dict[str, Any]
    mark: Mark


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """How many sessions share a device step, and how long the first to arrive waits for the others."""

    count: int = 1
    wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Graph:
    """What a graph file and the overrides come to.

    `clock` is None where none is given or branches differ; `path` is None where the graph was text.
    """

    name: str
    path: Path | None
    clock: int | None
    nodes: tuple[Node, ...]
    source: End | None
    sinks: tuple[End, ...]
    weights: str | None
    backend: str
    backend_options: dict[str, Any]
    lanes: LaneOptions
    params: dict[str, Param]
    mark: Mark

    def node(self, name: str) -> Node:
        """The node called `name`."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def tails(self) -> tuple[Node, ...]:
        """The nodes no other node follows: where rows end."""
        followed = {node.upstream for node in self.nodes}
        return tuple(node for node in self.nodes if node.name not in followed)


def load_graph(
    where: str | Path, *, sets: Sequence[str] = (), params: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None, allow_import: bool = False,
) -> Graph:  # fmt: skip
    """The graph in the file `where`, or the one that ships under that name ("mic").

    Parameters
    ----------
    sets : overrides, see `pipeline.overrides`
    params : values for the graph's `params`, as text with units; `weights` and `backend` need no declaration
    environ : what `${NAME}` reads, by default the process's own
    allow_import : whether stages named `module:Class` may be imported

    Raises
    ------
    GraphError   with every fault found
    """
    path = _locate(where)
    complaints = Complaints()
    reader = Reader(os.environ if environ is None else environ, complaints)
    part = reader.open(path, None, _given(params), [])
    return _graph(part, path.stem, path, sets, params, allow_import, complaints)


def parse_graph(
    text: str, name: str = "graph", *, folder: Path | None = None, sets: Sequence[str] = (),
    params: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None,
    allow_import: bool = False,
) -> Graph:  # fmt: skip
    """The graph that `text` describes; `use:` and paths resolve in `folder`. Otherwise as `load_graph`."""
    complaints = Complaints()
    reader = Reader(os.environ if environ is None else environ, complaints)
    part = reader.read(text, name, folder, _given(params), [])
    return _graph(part, name, None, sets, params, allow_import, complaints)


def _locate(where: str | Path) -> Path:
    path = Path(where)
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path
    name = str(where)
    shipped = graphs_folder() / f"{name}.yaml"
    if name.isidentifier() and shipped.is_file():
        return shipped
    names = [Path(file).stem for file in installed()]
    cure = hint(path.stem, names, "graphs")
    raise GraphError(f"{name or repr(name)}: there is no such file, nor a graph of that name{cure}")


def _given(params: Mapping[str, str] | None) -> dict[str, Leaf]:
    return {name: loose(text, _option_mark(name)) for name, text in (params or {}).items()}


def _option_mark(name: str) -> Mark:
    return Mark(f"--{name.replace('_', '-')}")


def _graph(
    part: Part, name: str, path: Path | None, sets: Sequence[str], params: Mapping[str, str] | None,
    allow_import: bool, complaints: Complaints,
) -> Graph:  # fmt: skip
    known = {*part.params, "weights", "backend"}
    for given in params or {}:
        if given == "backend" or (given not in part.params and given in known):
            overrides.set_word(given, loose((params or {})[given], _option_mark(given)), part, complaints)
        elif given not in known and (part.nodes or not complaints):
            cure = hint(given, known, "it has")
            complaints.add(_option_mark(given), f"this graph has no such parameter{cure}")
    overrides.apply(sets, part, complaints)
    check = _Check(complaints, allow_import)
    backend, backend_options = check.backend(part)
    graph = Graph(
        name, path, check.one(CLOCK, part.clock, None),
        tuple(check.node(draft, part.weights) for draft in part.nodes),
        check.end("source", part.source) if part.source else None,
        tuple(check.end("sink", draft) for draft in part.sinks),
        part.weights.text if part.weights else None, backend, backend_options, check.lanes(part), part.params,
        Mark(str(path) if path else name, 1, 1),
    )  # fmt: skip
    complaints.settle()
    return graph


class _Check:
    """Turns drafts into values; a value that will not do is noted and left out."""

    def __init__(self, complaints: Complaints, allow_import: bool):
        self.complaints, self.allow_import = complaints, allow_import

    def node(self, draft: Draft, weights: Leaf | None) -> Node:
        path = (draft.weights or weights or NOWHERE).text or None
        return Node(
            draft.stage.text, draft.name, draft.upstream, self._options("stage", draft), draft.mark, path
        )  # fmt: skip

    def end(self, kind: str, draft: Draft) -> End:
        return End(draft.stage.text, draft.name, draft.upstream, self._options(kind, draft), draft.mark)

    def one(self, option: Option, leaf: Leaf | None, default: Any) -> Any:
        if leaf is None or leaf.void:
            return default
        try:
            return convert(option, leaf)
        except GraphError as fault:
            self.complaints.add(leaf.mark, f"{option.name}: {fault}")
            return default

    def backend(self, part: Part) -> tuple[str, dict[str, Any]]:
        """Its name and its options."""
        if not isinstance(part.backend, Table):
            return self.one(backends.NAME, part.backend, backends.AUTO), {}
        given = {key.text: (key, value) for key, value in part.backend.entries}
        _, name = given.pop("name", (NOWHERE, None))
        if name is not None and not isinstance(name, Leaf):
            self.complaints.add(name.mark, f"backend: expected {backends.NAME.wants}, found {describe(name)}")
            return backends.AUTO, {}
        before = len(self.complaints)
        chosen = self.one(backends.NAME, name, backends.AUTO)
        if len(self.complaints) > before or not given:  # of a misspelt backend nothing is known
            return chosen, {}
        known = backends.options_of_backend(chosen)
        for option in [option for option in given if option not in known and backends.takers(option)]:
            key, _ = given.pop(option)
            others = backends.takers(option)
            has = f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'}"
            self.complaints.add(key.mark, f"{chosen} has no option {quoted(option)}; {has}")
        return chosen, self._values("backend" if chosen == backends.AUTO else chosen, known, given)

    def lanes(self, part: Part) -> LaneOptions:
        if part.lanes is None:
            return LaneOptions()
        entries = {key.text: (key, value) for key, value in part.lanes.entries}
        found = self._values("lanes", LANES, entries)
        count = found.get("count", 1)
        if not 1 <= count <= MOST_LANES:
            mark = entries["count"][1].mark
            self.complaints.add(mark, f"lanes: count is {count}, expected 1 to {MOST_LANES}")
        return LaneOptions(**found)

    def _options(self, kind: str, draft: Draft) -> dict[str, Any]:
        try:
            known = options_of(find(kind, draft.stage.text, allow_import=self.allow_import))
        except GraphError as fault:
            self.complaints.add(draft.mark, str(fault))
            return {}
        given = dict(draft.options)
        if kind == "source":
            for name in PATHS & given.keys():
                key, value = given[name]
                given[name] = (key, resolve(value, draft.folder) if isinstance(value, Leaf) else value)
        missing = [option for option in known.values() if option.required and option.name not in given]
        for option in missing:
            cure = f"add {option.name}: {option.wants}" if option.writable else "only a program can give it"
            self.complaints.add(draft.mark, f"{draft.stage.text} needs {option.name!r}; {cure}")
        return self._values(draft.name, known, given)

    def _values(
        self, place: str, known: Mapping[str, Option], given: Mapping[str, tuple[Leaf, Tree]]
    ) -> dict[str, Any]:
        values = {}
        for name, (key, value) in given.items():
            option = known.get(name)
            if option is None:
                cure = hint(name, known, f"{place} takes") or f"; {place} takes none"
                self.complaints.add(key.mark, f"{place} has no option {quoted(name)}{cure}")
                continue
            if isinstance(value, Leaf) and value.void:
                continue
            try:
                values[option.keyword] = convert(option, value)
            except GraphError as fault:
                self.complaints.add(value.mark, f"{place}.{name}: {fault}")
        return values
