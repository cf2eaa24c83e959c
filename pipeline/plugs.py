"""Whether every plug of a graph fits the one above it, without weights and without a device.

Stages that need only their upstream are built and asked. A stage that needs weights says what it takes and
gives in two class attributes, `TAKES = ("mel", 160)` and `GIVES = ("frames", 320)`: kind and hop. One that
says nothing is passed over, and what follows it is then checked only by `build`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.catalog import STAGES, find, find_stage
from pipeline.complaints import Complaints
from pipeline.ends.paths import is_same
from pipeline.graph import End, Graph, Node
from pipeline.options import injected
from stages.errors import ConfigError, StageError
from stages.stage import Port, pcm

TOKEN_HZ = 12.5  # of both models: a token every 80 ms, 16000 / 1280 or 24000 / 1920
STANDARD = "-"  # standard input or output, which is no file
USUAL_HZ = 16_000  # assumed of a source where neither it nor the graph names a rate
MODEL = frozenset({"checkpoint", "weights", "config", "backend"})


def check_ports(graph: Graph, source_rate: int | None = None) -> dict[str, Port]:
    """What every node gives, by name; "source" is among them, nodes that cannot tell are not.

    Parameters
    ----------
    source_rate : Hz of what the source brings; where it is not known, the graph's clock stands in

    Raises
    ------
    GraphError   naming every plug that does not fit, every row that does not end at 12.5 tokens a second,
                 every sink that cannot take what it gets, or would write over a file that is read or written
                 besides, a stage that waits for the end of a live source
    """
    complaints = Complaints()
    ports = {"source": pcm(source_rate or graph.clock or USUAL_HZ)}
    live = bool(graph.source and getattr(find("source", graph.source.kind), "live", False))
    for node in graph.nodes:
        above = ports.get(node.upstream)
        if above is not None and (port := _fit(node, above, live, complaints)):
            ports[node.name] = port
    for node in graph.tails:
        if node.name in ports:
            _check_clock(graph, node, ports[node.name], complaints)
    for sink in graph.sinks:
        wants, given = getattr(find("sink", sink.kind), "TAKES", None), ports.get(sink.upstream)
        if wants and given and given.kind != wants:
            cure = "; say which node with from:" if len(graph.nodes) > 1 else ""
            message = f"{sink.name} takes {wants}, but {sink.upstream} gives {_short(given)}{cure}"
            complaints.add(sink.mark, message)
    _check_files(graph, complaints)
    complaints.settle()
    return ports


def _check_files(graph: Graph, complaints: Complaints) -> None:
    """No sink writes over what the source reads, or what another sink writes."""
    taken: list[tuple[str, str]] = [("source", path_of(graph.source))] if graph.source else []
    for sink in graph.sinks:
        path = path_of(sink)
        for name, other in taken:
            if path and (path == other or is_same(path, other)) and path != STANDARD:
                complaints.add(sink.mark, f"{sink.name} would write over the file of {name}, {path!r}")
        taken.append((sink.name, path))


def path_of(end: End) -> str:
    """The file an end names, empty if it names none."""
    path = end.options.get("path")
    return str(path) if isinstance(path, str | Path) else ""


def plug_summary(cls: type[Any]) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """((kind, hop) taken, (kind, hop) given) of a stage that needs weights, where it says so."""
    takes, gives = getattr(cls, "TAKES", None), getattr(cls, "GIVES", None)
    return (takes, gives) if takes and gives else None


def _fit(node: Node, above: Port, live: bool, complaints: Complaints) -> Port | None:
    cls = find_stage(node.stage)
    try:
        port, lookahead = _through(node.stage, cls, node.options, above, node.upstream)
    except (StageError, TypeError, ValueError) as fault:
        complaints.add(node.mark, f"{fault}{_missing(node, cls, above)}")
        return None
    if lookahead < 0 and live:
        complaints.add(
            node.mark,
            f"{node.name} waits for the end of all audio, which a live source does not have"
            + ("; take scope: running" if node.options.get("scope") == "whole" else ""),
        )
    return port


def _through(
    name: str, cls: type[Any], options: dict[str, Any], above: Port, upstream: str
) -> tuple[Port | None, int]:
    """What a stage gives when plugged into `above`, and its lookahead."""
    if not injected(cls) & MODEL:
        stage = cls(above, **options)
        return stage.gives, stage.lookahead
    summary = plug_summary(cls)
    if summary is None:
        return None, 0
    (kind, hop), (gives, gives_hop) = summary
    if (above.kind, above.hop) != (kind, hop):
        raise ConfigError(f"{name} takes {kind} (hop {hop}), but {upstream} gives {_short(above)}")
    return Port(gives, above.rate, gives_hop, 0), 0


def _missing(node: Node, cls: type[Any], above: Port) -> str:
    """The stage of ours that, put between the two, would make them fit."""
    for name in STAGES:
        between = _tried(find_stage(name), {}, above)
        if between and _tried(cls, node.options, between):
            return f'; is "{name}" missing before it?'
    return ""


def _tried(cls: type[Any], options: dict[str, Any], above: Port) -> Port | None:
    try:
        return _through("", cls, options, above, "")[0]
    except (StageError, TypeError, ValueError):
        return None


def _check_clock(graph: Graph, node: Node, port: Port, complaints: Complaints) -> None:
    if graph.clock and port.rate != graph.clock:
        message = f"its samples are counted at {port.rate} Hz, but the graph says clock: {graph.clock}"
        complaints.add(node.mark, f"{node.name}: {message}; is a resample missing?")
    elif port.kind in ("tokens", "text") and port.rate / port.hop != TOKEN_HZ:
        rate = f"{port.rate} Hz / {port.hop} samples = {port.rate / port.hop:g} tokens a second"
        complaints.add(node.mark, f"{node.name}: {rate}, but the model speaks {TOKEN_HZ:g}; check the hops")


def _short(port: Port) -> str:
    return f"{port.kind} (hop {port.hop})"
