"""The built-in model on a processor: beside the portable backend, and what bytes for activations cost it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.ends.memory import Memory
from pipeline.errors import PipelineError
from pipeline.graph import Graph, load_graph
from pipeline.metrics import Metrics
from pipeline.run import Run
from pipeline.tools.bench import find_clip, ticking
from pipeline.tools.card_run import TIME_UP
from pipeline.tools.cpu_clock import Spread, in_turns, timed
from pipeline.tools.cpu_figures import Line, Wanted
from pipeline.tools.cpu_run import CpuRun
from pipeline.tools.evaluate import evaluate_manifest, read_manifest
from pipeline.tools.figures import Clip
from pipeline.tools.machine import one_blas_thread
from pipeline.tools.score import Scorer

PORTABLE = Wanted(3.0)
THREADS = "NumPy takes more than one thread; set OPENBLAS_NUM_THREADS=1, or pip install threadpoolctl"
COST = Wanted(0.3, below=True)  # points of words wrong


def measure_graph(run: CpuRun) -> None:
    """The shipped graph over its own recording, on one thread, in turns with the portable backend."""
    figure = f"built-in model, {run.sweep.graph}.yaml, 1 thread"
    run.begin(figure)
    whole = Line(figure, "ms", None, "portable, 1 thread", held="peer", wanted=PORTABLE)
    live = replace(whole, figure=f"{figure}, in blocks of 80 ms", wanted=None)
    if run.over:
        run.add(replace(whole, why=TIME_UP))
        run.add(replace(live, why=TIME_UP))
        return
    with one_blas_thread() as kept:
        if not kept:
            run.add(replace(whole, why=THREADS))
            run.add(replace(live, why=THREADS))
            return
        ours = Run(load_graph(run.sweep.graph, params={"backend": "cpu"}, sets=["backend.threads=1"]))
        theirs = Run(load_graph(run.sweep.graph, params={"backend": "portable"}))
        clip = find_clip(ours.graph, run.sweep.live_s)
        path = Path(ours.graph.source.options["path"]) if ours.graph.source else Path()
        for line, act in ((whole, lambda one: one.transcribe(path)), (live, lambda one: hear(one, clip))):
            acts = {"ours": timed(partial(act, ours)), "theirs": timed(partial(act, theirs))}
            found = in_turns(acts, run.patience)
            run.add(replace(line, ours=found["ours"], theirs=found["theirs"]))


def hear(one: Run, clip: Clip) -> None:
    """The clip as it would come from a microphone, but without the waiting."""
    for _ in ticking(one.plan, clip, [Memory()], Metrics()):
        pass


def measure_words(run: CpuRun) -> None:
    """Words wrong with activations as bytes, beside those with f32, over recordings nobody trained on."""
    figure = "words wrong with int8 activations, built-in model in Q4_0"
    run.begin(figure)
    line = Line(figure, "%", None, "f32 activations", held="points", wanted=COST)
    if run.over:
        run.add(replace(line, why=TIME_UP))
        return
    try:
        rows, score = read_manifest(run.sweep.recordings), Scorer()
        rates = {}
        for activations in ("int8", "f32"):
            graph = q4_graph(run, activations)
            rates[activations] = evaluate_manifest(Run(graph), rows, score).overall.words.rate
    except PipelineError as reason:
        run.add(replace(line, why=str(reason)))
        return
    ours, theirs = (Spread(rates[name], rates[name], len(rows)) for name in ("int8", "f32"))
    figure = f"{figure}, {len(rows)} recordings"
    run.add(replace(line, figure=figure, ours=ours, theirs=theirs))


def q4_graph(run: CpuRun, activations: str) -> Graph:
    """The shipped graph with the built-in model in blocks, whose products quantise activations."""
    built_in = load_graph(run.sweep.graph, environ={}).weights
    weights = Path(built_in or "") / run.sweep.weights
    options = {"backend": "cpu", "weights": str(weights)}
    return load_graph(run.sweep.graph, params=options, sets=[f"backend.activations={activations}"])
