"""`bench`: speed, latency and memory of a graph on this machine, each beside its floor of the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kernels import Backend
from pipeline.build import Plan, build
from pipeline.ends.memory import Memory, MemorySource
from pipeline.engine import Engine
from pipeline.errors import GraphError, SourceError
from pipeline.graph import Graph, LaneOptions
from pipeline.metrics import Metrics
from pipeline.opening import open_chosen
from pipeline.progress import progress
from pipeline.run import raise_first
from pipeline.tools import machine
from pipeline.tools.figures import Bench, Clip, Live
from pipeline.tools.floors import measure_floors, parameters
from pipeline.tools.recordings import recording
from stages.voxtral.names import Checkpoint

TICK_S = 0.08  # one token
PASS_S = 10.0  # a block of an offline run
LANES = (1, 2, 4, 8)
LANES_SHARE = 0.25  # of the seconds asked for, as lanes are measured four times
PATIENCE_S = 60.0  # a live run that takes longer is not repeated for the lanes
SHORTEST_S, LONGEST_S = 0.4, 3600.0
NOISE_RATE_HZ, NOISE_LEVEL = 16_000, 0.05


def bench_graph(graph: Graph, seconds: float = 20.0) -> Bench:
    """Measure `graph` on `seconds` of its own source's recording, or of noise where there is none.

    Raises
    ------
    GraphError   the graph has no model, or the length makes no sense
    and what `build` may raise
    """
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise GraphError(f"bench: seconds should be {SHORTEST_S:g} to {LONGEST_S:g}, found {seconds:g}")
    clip = find_clip(graph, seconds)
    with progress("measuring", unit="of 5 figures") as report:
        started = time.perf_counter()
        plan = build(graph)
        load_s = time.perf_counter() - started
        if plan.backend is None or not plan.checkpoints:
            raise GraphError(f"{graph.name}: has no model, so there is nothing to measure")
        checkpoint = next(iter(plan.checkpoints.values()))
        report(1, 5)
        live = measure_live(plan, clip)
        report(2, 5)
        offline_s = measure_offline(plan, clip)
        peak_bytes = machine.peak_memory()
        report(3, 5)
        short = clip.cut(max(SHORTEST_S, LANES_SHARE * seconds))
        counts = LANES if live.rtf * live.seconds < PATIENCE_S else ()
        lanes_ms = {n: measure_lanes(plan, short, n) if fits(plan, n) else None for n in counts}
        report(4, 5)
        fresh = open_chosen(plan.backend.name, graph.backend_options)
        floors = measure_floors(checkpoint, fresh)
    return Bench(
        machine=machine.describe_machine() | gpu(plan.backend),
        backend=plan.backend.name,
        weights=about_weights(checkpoint),
        clip=clip,
        delay_ms=delay_ms(plan),
        load_s=load_s,
        offline_s=offline_s,
        pass_s=PASS_S,
        live=live,
        lanes_ms=lanes_ms,
        floors=floors,
        peak_bytes=peak_bytes,
    )


def find_clip(graph: Graph, seconds: float) -> Clip:
    """`seconds` of the recording that the graph's source names, else of noise, always the same."""
    source = graph.source.options.get("path") if graph.source and graph.source.kind == "file" else None
    if source is not None and Path(source).is_file():
        clip = _heard(graph, Path(source), seconds)
        if len(clip.samples):
            return clip.cut(seconds)
    noise = np.random.default_rng(0).standard_normal(round(seconds * NOISE_RATE_HZ))
    return Clip("noise", (NOISE_LEVEL * noise).astype(np.float32), NOISE_RATE_HZ)


def measure_live(plan: Plan, clip: Clip) -> Live:
    """One speaker, fed 80 ms at a time; the engine rests before the next block comes."""
    metrics, memory = Metrics(), Memory()
    ticks: list[float] = []
    words: list[float] = []
    parts: list[dict[str, float]] = []
    busy: dict[str, float] = {}
    for spent in ticking(plan, clip, [memory], metrics):
        ticks.append(1000 * spent)
        parts.append({name: 1000 * (m.busy_s - busy.get(name, 0.0)) for name, m in metrics.stages.items()})
        busy = {name: m.busy_s for name, m in metrics.stages.items()}
        words += [waited + ticks[-1] for waited in _waits(memory)]
        memory.packets.clear()
        memory.emitted_s.clear()
    stages = {node.name: median(part[node.name] for part in parts[1:-1]) for node in plan.graph.nodes}
    return Live(
        clip.seconds, ticks[0], tuple(ticks[1:-1]), ticks[-1], stages, tuple(words), len(memory.pieces)
    )


def measure_offline(plan: Plan, clip: Clip) -> float:
    """Seconds of work for the whole clip, in long blocks."""
    engine = Engine(plan)
    started = time.perf_counter()
    engine.open(MemorySource(clip.samples, clip.rate, block_ms=1000 * PASS_S), [(_text(plan), Memory())])
    engine.run()
    spent = time.perf_counter() - started
    raise_first(engine.failed)
    return spent


def measure_lanes(plan: Plan, clip: Clip, lanes: int) -> tuple[float, ...]:
    """Milliseconds of every tick with `lanes` speakers in step."""
    ticks = list(ticking(plan, clip, [Memory() for _ in range(lanes)], Metrics()))
    return tuple(1000 * spent for spent in ticks[1:-1])


def ticking(plan: Plan, clip: Clip, sinks: Sequence[Memory], metrics: Metrics) -> Iterator[float]:
    """Seconds of work for every 80 ms of audio, a session for each of `sinks`; last, those for the ending."""
    wide = replace(plan, graph=replace(plan.graph, lanes=LaneOptions(count=len(sinks))))
    engine = Engine(wide, metrics)
    node, block = _text(plan), round(TICK_S * clip.rate)
    sources = [MemorySource(clip.samples, clip.rate) for _ in sinks]
    sessions = [
        engine.open(source, [(node, sink)], start=False) for source, sink in zip(sources, sinks, strict=True)
    ]
    pump = engine.pump()
    for at in range(0, len(clip.samples), block):
        for session in sessions:
            session.intake.put(clip.samples[at : at + block])
        yield _settle(engine, pump)
    for session in sessions:
        session.intake.end()
    yield _settle(engine, pump)
    raise_first(engine.failed)


def fits(plan: Plan, lanes: int) -> bool:
    """Whether the windows of `lanes` speakers fit the memory that is free."""
    room = plan.backend.free_bytes() if plan.backend else None
    room = machine.memory_available() if room is None else room
    return room is None or lanes * plan.lane_bytes < room


def gpu(backend: Backend) -> dict[str, str]:
    """Which GPU the backend runs on, if it does."""
    device = getattr(backend, "device", None)
    return {} if device is None else {"gpu": device.name}


def about_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    entries = checkpoint.weights.entries.values()
    return {
        "path": str(checkpoint.weights.source),
        "kinds": sorted({entry.kind for entry in entries}),
        "parameters": parameters(checkpoint),
        "bytes": sum(entry.nbytes for entry in entries),
    }


def delay_ms(plan: Plan) -> float | None:
    """What the decoder of the graph was told to wait, where it says."""
    ports = (stage.gives for stage in plan.built.values())
    return next((1000 * port.delay / port.rate for port in ports if port.delay), None)


def _heard(graph: Graph, path: Path, seconds: float) -> Clip:
    """The first `seconds` of a recording, as far as it can be read."""
    source, blocks, heard = recording(graph, path), [np.zeros(0, np.float32)], 0
    try:
        rate = source.open().rate
        for block in source.blocks():
            blocks.append(block)
            if (heard := heard + len(block)) >= seconds * rate:
                break
    except SourceError:
        rate = NOISE_RATE_HZ if not heard else rate
    finally:
        source.close()
    return Clip(path.name, np.concatenate(blocks), rate)


def _settle(engine: Engine, pump: Iterator[Any]) -> float:
    """Seconds until all that has arrived is worked off."""
    started = time.perf_counter()
    while (pending := next(pump, engine.news)) is not engine.news:
        pending.wait()
    return time.perf_counter() - started


def _waits(memory: Memory) -> Iterator[float]:
    """Milliseconds of audio between the end of each new word and the moment its text came out."""
    rate = memory.port.rate if memory.port else 1
    for packet, emitted_s in zip(memory.packets, memory.emitted_s, strict=True):
        for piece in packet.data:
            if piece.word and emitted_s is not None:
                yield 1000 * (emitted_s - piece.span.stop / rate)


def _text(plan: Plan) -> str:
    return plan.text_nodes[0]
