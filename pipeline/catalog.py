"""What a graph may name: stages, sources and sinks, as strings that are imported on use.

A name is one of these dicts' keys; for stages also an entry point of the group `pipeline.stages` of an
installed package, or, where the caller allows it, a dotted `module:Class`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from pipeline.complaints import hint, quoted
from pipeline.errors import GraphError

STAGES = {
    "resample": "stages.audio.resample:Resample",
    "normalize": "stages.audio.normalize:Normalize",
    "pad": "stages.audio.pad:Pad",
    "mel": "stages.audio.mel:Mel",
    "segment": "stages.audio.segment:Segment",
    "voxtral.encoder": "stages.voxtral.encoder:Encoder",
    "voxtral.adapter": "stages.voxtral.adapter:Adapter",
    "voxtral.decoder": "stages.voxtral.decoder:Decoder",
    "voxtral.text": "stages.voxtral.text:Detokenizer",
}
SOURCES = {
    "file": "pipeline.ends.file:FileSource",
    "mic": "pipeline.ends.mic:MicSource",
    "memory": "pipeline.ends.memory:MemorySource",
}
SINKS = {
    "terminal": "pipeline.ends.terminal:Terminal",
    "lines": "pipeline.ends.lines:Lines",
    "jsonl": "pipeline.ends.jsonl:Jsonl",
    "subtitles": "pipeline.ends.subtitles:Subtitles",
    "wav": "pipeline.ends.file:Wav",
    "memory": "pipeline.ends.memory:Memory",
}
KINDS = {"stage": STAGES, "source": SOURCES, "sink": SINKS}
GROUP = "pipeline.stages"


class Written(Protocol):
    """An end as `pipeline.graph.End` holds it."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def options(self) -> dict[str, Any]: ...
    @property
    def mark(self) -> Any: ...


def names(kind: str) -> dict[str, str]:
    """Every name of `kind` (stage, source or sink) with its "module:Class"; ours cannot be taken over."""
    if kind != "stage":
        return dict(KINDS[kind])
    return {point.name: point.value for point in entry_points(group=GROUP)} | STAGES


def find(kind: str, name: str, *, allow_import: bool = False) -> type[Any]:
    """The class behind `name`.

    Raises
    ------
    GraphError   if there is none; if it is a `module:Class` and `allow_import` is false (nothing is imported
                 then); if it cannot be imported, or has not the methods of a stage
    """
    if name in KINDS[kind]:
        return _load(kind, name, KINDS[kind][name], ours=True)
    known = names(kind)
    if name in known:
        return _load(kind, name, known[name], ours=False)
    if kind == "stage" and ":" in name:
        if not allow_import:
            raise GraphError(
                f"stage {quoted(name)} is not in the catalog and would run code of its own; "
                "allow it with --allow-import if you trust this graph"
            )
        return _load(kind, name, name, ours=False)
    raise GraphError(f"no {kind} is called {quoted(name)}{hint(name, known, f'{kind}s')}")


def find_stage(name: str) -> type[Any]:
    """The class of a node of a `Graph`, whose imports were allowed or refused when it was read."""
    return find("stage", name, allow_import=True)


def make_source(end: Written) -> Any:
    """The source that a graph's `End` describes; what its constructor refuses becomes a complaint there."""
    return _make("source", end)


def make_sink(end: Written) -> Any:
    """The sink that a graph's `End` describes."""
    return _make("sink", end)


def _make(kind: str, end: Written) -> Any:
    try:
        return find(kind, end.kind)(**end.options)
    except GraphError as fault:
        raise GraphError(*(f"{end.mark}: {end.name}: {line}" for line in fault.complaints)) from fault


def _load(kind: str, name: str, place: str, *, ours: bool) -> type[Any]:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as fault:
        raise GraphError(f"{kind} {quoted(name)} cannot be imported from {place!r}: {fault}") from fault
    except Exception as fault:  # somebody else's module may raise anything while it loads
        if ours:
            raise
        raise GraphError(f"{kind} {quoted(name)}: {module} raised {type(fault).__name__}: {fault}") from fault
    if not isinstance(found, type):
        raise GraphError(f"{kind} {quoted(name)}: {place!r} is {quoted(found)}, expected a class")
    missing = [verb for verb in ("open", "step", "flush") if kind == "stage" and not hasattr(found, verb)]
    if missing:
        raise GraphError(f"stage {quoted(name)}: {place!r} has no {', '.join(missing)}; is it a stage?")
    return found
