"""From a `Graph` to constructed stages, with every plug checked before any weight is read.

A `Plan` is what all sessions of a graph share: checkpoints, the backend, and the stages. Device stages are
made once; a host stage depends on the source's rate, and is made once for every rate that comes up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels import Backend
from pipeline.catalog import find_stage
from pipeline.errors import GraphError, WeightsMissing
from pipeline.graph import End, Graph, Node
from pipeline.opening import open_chosen
from pipeline.options import injected
from pipeline.plugs import check_ports
from pipeline.progress import Report, say
from pipeline.reading import Reading
from pipeline.room import NOTABLE_BYTES, SMALLER, room_for
from pipeline.tools.machine import memory_available, size
from stages import ConfigError, FileAbsent, Port, Stage, pcm
from stages.voxtral.names import Checkpoint, open_checkpoint

MISSING = """\
{what}
  full precision (8.9 GB): put consolidated.safetensors, params.json and tekken.json of
    mistralai/Voxtral-Mini-4B-Realtime-2602 (Hugging Face) into one folder and name that folder
  Q4_0 (2.5 GB): put voxtral-q4.gguf of TrevorJS/voxtral-mini-realtime-gguf beside params.json and
    tekken.json of the model above, and name the .gguf
  or leave VOXTRAL and --weights unset: the small built-in model needs no download"""


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph with its weights loaded.

    checkpoints : by path
    runs : the unbroken rows of device stages, node names in order; one per model
    built : the stages of those rows
    text_nodes : the nodes that give text
    """

    graph: Graph
    checkpoints: dict[str, Checkpoint]
    backend: Backend | None
    runs: tuple[tuple[str, ...], ...]
    built: dict[str, Stage[Any]]
    text_nodes: tuple[str, ...]
    _host: dict[tuple[str, Port], Stage[Any]] = field(default_factory=dict)

    @property
    def lane_bytes(self) -> int:
        """What one lane keeps when its windows are full."""
        return sum(getattr(stage, "lane_bytes", 0) for stage in self.built.values())

    def stages(self, source: Port) -> dict[str, Stage[Any]]:
        """All stages by node name, for a source with the port `source`."""
        made: dict[str, Stage[Any]] = {}
        for node in self.graph.nodes:
            upstream = source if node.upstream == "source" else made[node.upstream].gives
            made[node.name] = self.built.get(node.name) or self._host_stage(node, upstream)
            takes = made[node.name].takes
            if not _same(takes, upstream):
                raise GraphError(
                    f"{node.mark}: {node.stage} takes {takes}, but {node.upstream} gives {upstream}"
                )
        return made

    def _host_stage(self, node: Node, upstream: Port) -> Stage[Any]:
        key = node.name, upstream
        if key not in self._host:
            self._host[key] = construct(node, upstream, self.checkpoints, self.backend)
        return self._host[key]


def build(
    graph: Graph, backend: Backend | None = None, report: Report = lambda done, total: None
) -> Plan:
    """Check a graph's plugs, open the weights and the backend it needs and construct its stages.

    report : told how many bytes of weights have been read, of how many

    Raises
    ------
    GraphError       a plug does not fit, or device stages do not stand in unbroken rows
    WeightsMissing   the weights, or a file that goes with them, are not there; says which files go where
    WeightsError, BackendMissing   from the floors below
    """
    check_ports(graph)
    needs = {node.name: injected(find_stage(node.stage)) for node in graph.nodes}
    checkpoints = _checkpoints(graph, needs)
    if backend is None and any("backend" in names for names in needs.values()):
        backend = open_chosen(graph.backend, graph.backend_options)
    if backend is not None:
        _say_room(graph, checkpoints, backend)
    made: dict[str, Stage[Any]] = {}
    clock, reading = pcm(graph.clock or 16_000), Reading(checkpoints.values(), report)
    watched = {path: reading.watch(checkpoint) for path, checkpoint in checkpoints.items()}
    for node in graph.nodes:
        upstream = clock if node.upstream == "source" else made[node.upstream].gives
        made[node.name] = construct(node, upstream, watched, backend)
    reading.end()
    device = {name: stage for name, stage in made.items() if stage.takes.where == "device"}
    _check_asks(graph, made)
    texts = tuple(name for name, stage in made.items() if stage.gives.kind == "text")
    plan = Plan(graph, checkpoints, backend, _runs(graph, device), device, texts)
    for node in graph.nodes:
        if node.name not in device:
            plan._host[node.name, made[node.name].takes] = made[node.name]
    _check_lanes(plan)
    return plan


def construct(
    node: Node, upstream: Port, checkpoints: dict[str, Checkpoint], backend: Backend | None
) -> Stage[Any]:
    """One stage; what its constructor says about the options or the plug becomes a complaint with the node's
    place.
    """
    kind = find_stage(node.stage)
    wanted = injected(kind)
    given: dict[str, Any] = {"backend": backend} if "backend" in wanted else {}
    if "checkpoint" in wanted:
        given["checkpoint"] = checkpoints[node.weights or ""]
    try:
        return kind(upstream, **given, **node.options)
    except (ConfigError, TypeError) as error:
        raise GraphError(f"{node.mark}: {error}") from error
    except FileAbsent as gone:
        raise WeightsMissing(MISSING.format(what=gone)) from gone


def _checkpoints(graph: Graph, needs: dict[str, frozenset[str]]) -> dict[str, Checkpoint]:
    found: dict[str, Checkpoint] = {}
    for node in graph.nodes:
        if "checkpoint" not in needs[node.name] or node.weights in found:
            continue
        if not node.weights:
            raise GraphError(
                f"{node.mark}: {node.name} needs weights, but the graph names none; add 'weights: FOLDER'"
            )
        if not Path(node.weights).exists():
            raise WeightsMissing(MISSING.format(what=f"no weights at {node.weights!r}"))
        try:
            found[node.weights] = open_checkpoint(Path(node.weights))
        except FileAbsent as gone:
            raise WeightsMissing(MISSING.format(what=gone)) from gone
    return found


def _say_room(graph: Graph, checkpoints: dict[str, Checkpoint], backend: Backend) -> None:
    """What a large model is about to take."""
    for path, checkpoint in checkpoints.items():
        context = max(node.options.get("context", 0) for node in graph.nodes if node.weights == path)
        room = room_for(checkpoint, backend, context)
        if room.weights >= NOTABLE_BYTES:
            much = "" if room.fits else f". That is more than is free: {SMALLER}"
            say(f"{path} on {backend.name} takes {room}{much}")


def _runs(graph: Graph, device: dict[str, Stage[Any]]) -> tuple[tuple[str, ...], ...]:
    """Rows of device stages, each fed by the one above; only the last of a row may be read on the host."""
    runs: list[list[str]] = []
    for node in graph.nodes:
        if node.name not in device:
            continue
        row = next((row for row in runs if row[-1] == node.upstream), None)
        if row is not None:
            row.append(node.name)
        elif node.upstream in device:
            raise GraphError(
                f"{node.mark}: {node.name} forks off {node.upstream} on the device; fork on the host"
            )
        else:
            runs.append([node.name])
    inner = {name for row in runs for name in row[:-1]}
    readers: tuple[Node | End, ...] = (*graph.nodes, *graph.sinks)
    for end in readers:
        if end.upstream in inner and end.name not in device:
            raise GraphError(
                f"{end.mark}: {end.name} reads {end.upstream}, which stays on the device; read after it"
            )
    return tuple(map(tuple, runs))


def _check_asks(graph: Graph, made: dict[str, Stage[Any]]) -> None:
    """What a stage `asks` of those above it, such as the silence its prompt stands for, must be so."""
    for node in graph.nodes:
        above = node
        while above.upstream != "source":
            above = graph.node(above.upstream)
            stage = made[above.name]
            for name, value in getattr(made[node.name], "asks", {}).get(type(stage).__name__, {}).items():
                found = getattr(stage, name)
                if found != value:
                    raise GraphError(
                        f"{above.mark}: {above.name} has {name} {found:g}, but {node.name} and its weights "
                        f"need {value:g}{_in_ms(name, value, stage.gives.rate)}"
                    )


def _check_lanes(plan: Plan) -> None:
    """Several lanes must fit into memory, full; one is always tried."""
    count, lane = plan.graph.lanes.count, plan.lane_bytes
    if count == 1 or plan.backend is None:
        return
    room = plan.backend.free_bytes()
    room = memory_available() if room is None else room
    if room is not None and count * lane > room:
        wide = (plan.backend.name, getattr(plan.backend, "kv", "")) == ("cuda", "f16")
        narrower = ", or keys and values of 8 bits (backend.kv=q8)" if wide else ""
        raise GraphError(
            f"{plan.graph.name}: {count} lanes keep {size(count * lane)} when their windows are full, "
            f"{size(room)} are free; at most {max(1, room // lane)} fit, or give the decoder a smaller "
            f"context{narrower}"
        )


def _in_ms(name: str, value: float, rate: int) -> str:
    return f" samples, {name}: {1000 * value / rate:g}ms" if name in ("left", "delay") else ""


def _same(takes: Port, given: Port) -> bool:
    return (takes.kind, takes.rate, takes.hop, takes.width) == (
        given.kind,
        given.rate,
        given.hop,
        given.width,
    )
