"""`--set node.option=value`: one leaf of a graph changed from outside, before its options are checked.

```
pad.left=1s                a node's option, by the node's name
source.file.path=a.wav     an option of the source; naming another kind than the graph's puts a source of that
                           kind in its place, with that kind's defaults and none of the old one's options
sink.jsonl.path=out        an option of a sink, by its name; where the graph has at most one sink, another
                           kind replaces it in the same way
source=mic sink=lines      the kind alone
backend.kv=q8              an option of the backend; backend=portable names another one, and keeps none of the
                           old one's options, unless the old one was auto
weights=a.gguf lanes.count=4 lanes.wait=20ms
```

A value is a plain YAML scalar with its unit, or text.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.backends import AUTO
from pipeline.catalog import SINKS, SOURCES
from pipeline.complaints import Complaints, Mark, hint, quoted
from pipeline.drafts import Draft
from pipeline.parts import Part
from pipeline.tree import Leaf, Table, Tree, loose

WORDS = ("weights", "backend", "source", "sink")


def apply(sets: Sequence[str], part: Part, complaints: Complaints) -> None:
    """Change `part` as `sets` say, in their order."""
    for one in sets:
        _one(one, part, complaints)


def _one(written: str, part: Part, complaints: Complaints) -> None:
    mark = Mark(f"--set {ascii(written)[1:-1] if not written.isprintable() else written}")
    target, equals, text = written.partition("=")
    target = target.strip()
    if not equals or not target:
        complaints.add(mark, "expected node.option=value, as in pad.left=1s")
        return
    value, (head, dot, rest) = loose(text, mark), target.partition(".")
    if target in WORDS:
        set_word(target, value, part, complaints)
    elif head == "backend" and dot:
        part.backend = Table((*_kept(part.backend, rest), (Leaf(rest, rest, mark), value)), mark)
    elif head == "lanes" and dot:
        entries = part.lanes.entries if part.lanes else ()
        kept = tuple(entry for entry in entries if entry[0].text != rest)
        part.lanes = Table((*kept, (Leaf(rest, rest, mark), value)), mark)
    elif head in ("source", "sink", "sinks") and dot:
        _end("source" if head == "source" else "sink", rest, value, part, complaints)
    else:
        _node(target, value, part, complaints)


def set_word(word: str, value: Leaf, part: Part, complaints: Complaints) -> None:
    """Change one of `WORDS`."""
    if word == "weights":
        part.weights = value
        for node in part.nodes:
            node.weights = value
    elif word == "backend":
        old = next((name for key, name in _kept(part.backend) if key.text == "name"), None)
        stays = old is None or (isinstance(old, Leaf) and old.text in (value.text, AUTO))
        options = _kept(part.backend, "name") if stays else ()
        part.backend = Table(((Leaf("name", "name", value.mark), value), *options), value.mark)
    else:
        _switch(word, value.text, value.mark, part, complaints)


def _kept(backend: Leaf | Table | None, without: str = "") -> tuple[tuple[Leaf, Tree], ...]:
    """What is said of the backend, as the entries of a mapping, without one."""
    if isinstance(backend, Leaf):
        backend = Table(((Leaf("name", "name", backend.mark), backend),), backend.mark)
    return tuple(entry for entry in backend.entries if entry[0].text != without) if backend else ()


def _end(kind: str, rest: str, value: Leaf, part: Part, complaints: Complaints) -> None:
    name, dot, option = rest.partition(".")
    if not dot or not option:
        kinds = SOURCES if kind == "source" else SINKS
        current = part.source.name if part.source and kind == "source" else next(iter(kinds))
        complaints.add(value.mark, f"{kind} options are set as {kind}.{current}.{rest}=...")
        return
    ends = [part.source] if kind == "source" and part.source else part.sinks if kind == "sink" else []
    draft = next((end for end in ends if end.name == name), None)
    if draft := draft or _switch(kind, name, value.mark, part, complaints):
        draft.options[option] = (Leaf(option, option, value.mark), value)


def _switch(kind: str, name: str, mark: Mark, part: Part, complaints: Complaints) -> Draft | None:
    """A fresh end of kind `name` in place of the one there is."""
    kinds = SOURCES if kind == "source" else SINKS
    old = part.source if kind == "source" else part.sinks[0] if part.sinks else None
    if old and old.name == name and (kind == "source" or len(part.sinks) == 1):
        return old
    if name not in kinds:
        here = [sink.name for sink in part.sinks] if kind == "sink" else []
        complaints.add(mark, f"no {kind} is called {quoted(name)}{hint(name, [*kinds, *here], f'{kind}s')}")
        return None
    if kind == "sink" and len(part.sinks) > 1:
        several = ", ".join(sink.name for sink in part.sinks)
        complaints.add(mark, f"this graph has several sinks and none is called {name!r}; it has: {several}")
        return None
    upstream = old.upstream if old else part.tails[-1] if part.tails else "source"
    draft = Draft(Leaf(name, name, mark), {}, None, None, None, name, "" if kind == "source" else upstream)
    if kind == "source":
        part.source = draft
    else:
        part.sinks = [draft]
    return draft


def _node(target: str, value: Leaf, part: Part, complaints: Complaints) -> None:
    name, dot, option = target.rpartition(".")
    known = {node.name: node for node in part.nodes}
    by_stage = [node for node in part.nodes if node.stage.text == name]
    node = known.get(name) or (by_stage[0] if len(by_stage) == 1 else None)
    if node is not None:
        node.options[option] = (Leaf(option, option, value.mark), value)
    elif not dot and target in part.params:
        cure = f"--{target.replace('_', '-')} {value.text}"
        complaints.add(value.mark, f"{target!r} is a parameter of the graph; give it as {cure}")
    elif not dot:
        complaints.add(value.mark, "expected node.option=value, as in pad.left=1s")
    else:
        cure = hint(name, [*known, "source", "sink", "lanes", "backend"], "nodes")
        complaints.add(value.mark, f"no node is called {quoted(name)}{cure}")
