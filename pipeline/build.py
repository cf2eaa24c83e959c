"""From a `Graph` to constructed stages, with every plug checked on the way.

A `Plan` is what all sessions of a graph share: the checkpoint, the backend and the device stages with their weights. Host stages
are cheap and depend on the source's rate, so each session has its own, made by `Plan.stages`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import Backend, open_backend
from pipeline.catalog import find_stage
from pipeline.errors import GraphError, WeightsMissing
from pipeline.graph import Graph, Node
from stages import ConfigError, Port, Stage, pcm
from stages.voxtral.names import Checkpoint, open_checkpoint

TOKEN_RATE_HZ = 12.5  # both models: one token every 80 ms


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph with its weights loaded.

    device : the names of the unbroken run of device stages, in order; may be empty
    built : those stages
    """

    graph: Graph
    checkpoint: Checkpoint | None
    backend: Backend | None
    device: tuple[str, ...]
    built: dict[str, Stage[Any]]

    def stages(self, source: Port) -> dict[str, Stage[Any]]:
        """All stages by node name, host stages fresh for a source with the port `source`."""
        made: dict[str, Stage[Any]] = {}
        for node in self.graph.nodes:
            upstream = source if node.upstream == "source" else made[node.upstream].gives
            shared = self.built.get(node.name)
            made[node.name] = shared or construct(node, upstream, self.checkpoint, self.backend)
            if shared and (shared.takes.kind, shared.takes.rate, shared.takes.hop) != (upstream.kind, upstream.rate, upstream.hop):
                raise GraphError(f"{node.mark}: {node.stage} takes {shared.takes}, but {node.upstream} gives {upstream}")
        return made


def build(graph: Graph, backend: Backend | None = None) -> Plan:
    """Open the weights and the backend a graph needs and construct its device stages.

    Raises
    ------
    GraphError       a plug does not fit, or the device stages do not stand in one unbroken row
    WeightsMissing   the weights are not there; says which files go where
    WeightsError, BackendMissing   from the floors below
    """
    checkpoint = _checkpoint(graph) if _needs(graph, "checkpoint") else None
    if backend is None and _needs(graph, "backend"):
        backend = open_backend(graph.backend)
    made: dict[str, Stage[Any]] = {}
    clock = pcm(graph.clock or 16_000)
    for node in graph.nodes:
        upstream = clock if node.upstream == "source" else made[node.upstream].gives
        made[node.name] = construct(node, upstream, checkpoint, backend)
    device = tuple(name for name, stage in made.items() if stage.takes.where == "device")
    _check_run(graph, device)
    _check_rate(graph, made)
    return Plan(graph, checkpoint, backend, device, {name: made[name] for name in device})


def construct(node: Node, upstream: Port, checkpoint: Checkpoint | None, backend: Backend | None) -> Stage[Any]:
    """One stage; what its constructor says about the options or the plug becomes a complaint with the node's place."""
    kind = find_stage(node.stage)
    wanted = inspect.signature(kind).parameters
    given = {name: value for name, value in (("checkpoint", checkpoint), ("backend", backend)) if name in wanted}
    try:
        return kind(upstream, **given, **node.options)
    except (ConfigError, TypeError) as error:
        raise GraphError(f"{node.mark}: {error}") from error


def _needs(graph: Graph, injected: str) -> bool:
    return any(injected in inspect.signature(find_stage(node.stage)).parameters for node in graph.nodes)


def _checkpoint(graph: Graph) -> Checkpoint:
    if not graph.weights:
        raise GraphError(f"{graph.name}: a stage needs weights, but the graph names none; add 'weights: FOLDER' or --weights")
    if not Path(graph.weights).exists():
        raise WeightsMissing(missing_weights(graph.weights))
    return open_checkpoint(Path(graph.weights))


def missing_weights(path: str) -> str:
    """What to fetch and where to put it."""
    return (
        f"no weights at {path!r}\n"
        "  full precision (8.9 GB): put consolidated.safetensors, params.json and tekken.json of\n"
        "    mistralai/Voxtral-Mini-4B-Realtime-2602 (Hugging Face) into one folder and name that folder\n"
        "  Q4_0 (2.5 GB): the .gguf of TrevorJS/voxtral-mini-realtime-gguf, with params.json and tekken.json\n"
        "    of the model above beside it; name the .gguf\n"
        "  or leave VOXTRAL and --weights unset to use the small built-in model"
    )


def _check_run(graph: Graph, device: tuple[str, ...]) -> None:
    for above, below in zip(device, device[1:], strict=False):
        node = next(n for n in graph.nodes if n.name == below)
        if node.upstream != above:
            raise GraphError(f"{node.mark}: device stages stand in one row, but {below} takes from {node.upstream}, not {above}")
    inner = set(device[:-1])
    for end in (*graph.nodes, *graph.sinks):
        if end.upstream in inner and end.name not in device:
            raise GraphError(f"{end.mark}: {end.name} reads from {end.upstream}, which stays on the device; read before or after")


def _check_rate(graph: Graph, made: dict[str, Stage[Any]]) -> None:
    for name, stage in made.items():
        port = stage.gives
        if port.kind == "tokens" and port.rate / port.hop != TOKEN_RATE_HZ:
            raise GraphError(f"{graph.name}: {name} gives {port.rate / port.hop:g} tokens a second, the models give 12.5; check the hops")
