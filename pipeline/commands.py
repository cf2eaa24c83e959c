"""What the commands do: thin functions between parsed arguments and the rooms that do the work. Each returns
an exit code.
"""

from __future__ import annotations

import json
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.ends.output import Output
from pipeline.errors import GraphError, SinkClosed
from pipeline.graph import Graph, load_graph
from pipeline.progress import progress, say, text_is_watched
from pipeline.run import Run

INTERRUPTED = 130


def run(arguments: Namespace) -> int:
    graph = load(arguments, arguments.graph)
    if graph.source is None or not graph.sinks:
        what, add = ("sink", "sink=lines") if graph.source else ("source", "source.file.path=talk.wav")
        raise GraphError(f"{arguments.graph}: it has no {what} to run with; add one, as in --set {add}")
    report: dict[str, Any] = {}
    quiet = text_is_watched() or any(sink.kind == "terminal" for sink in graph.sinks)  # it draws there itself
    with (
        figures(arguments, report), loaded(graph, on_metrics=report.update) as running,
        stopping(running) as interrupted,
    ):  # fmt: skip
        try:
            with progress("hearing", unit="s", quiet=quiet) as report_heard:
                running.run(report_heard)
        finally:
            notes(running)
    return INTERRUPTED if interrupted else 0


def transcribe(arguments: Namespace) -> int:
    from pipeline.tools.transcribe import transcribe_files

    graph = load(arguments, arguments.graph)
    with loaded(graph) as running, stopping(running) as interrupted:
        failed = transcribe_files(running, arguments.files, arguments.format, arguments.output)
        notes(running)
    for name, error in failed:
        if not isinstance(error, SinkClosed):
            say(f"{error}" if name in str(error) else f"{name}: {error}")
    return (
        INTERRUPTED
        if interrupted
        else max((getattr(error, "exit_code", 1) for _, error in failed), default=0)
    )


def evaluate(arguments: Namespace) -> int:
    from pipeline.tools.evaluate import evaluate_manifest, read_manifest
    from pipeline.tools.score import Scorer

    graph = load(arguments, arguments.graph)
    rows = read_manifest(Path(arguments.manifest), only=arguments.only)
    score = Scorer(arguments.normalizer)  # whatever is missing is missed before the weights are loaded
    with loaded(graph) as running, stopping(running) as interrupted:
        result = evaluate_manifest(running, rows, score)
        notes(running)
    if arguments.errors:
        say(result.mistakes())
    show(json.dumps(result.as_json(), indent=1) if arguments.json else result.table())
    return INTERRUPTED if interrupted else 1 if result.failed else 0


def bench(arguments: Namespace) -> int:
    from pipeline.tools.bench import bench_graph
    from pipeline.tools.kernel_bench import bench_kernels, wanted

    started = time.perf_counter()
    if arguments.json and arguments.markdown:
        raise GraphError("bench: expected --json or --markdown, found both")
    graph = load(arguments, arguments.graph)
    manifest = Path(arguments.recordings) if arguments.recordings is not None else None
    backend = wanted(graph, arguments.kernels, arguments.record, arguments.budget, manifest)
    result = bench_graph(graph, seconds=arguments.seconds)
    kernels = None
    if backend:
        left_s = arguments.budget - (time.perf_counter() - started)
        kernels = bench_kernels(backend, graph, left_s, record=arguments.record, recordings=manifest)
    if arguments.json:
        show(json.dumps(result.as_json() | ({kernels.backend: kernels.told} if kernels else {}), indent=1))
        return 0
    show(result.markdown() if arguments.markdown else result.table())
    if kernels:
        show(f"\n{kernels.markdown}")
    return 0


def validate(arguments: Namespace) -> int:
    from pipeline.plugs import check_ports

    graph = load(arguments, arguments.graph)
    check_ports(graph)
    stages, sinks = len(graph.nodes), len(graph.sinks)
    show(f"{arguments.graph}: ok, {stages} stages, {sinks} sink{'s' * (sinks != 1)}")
    return 0


def inspect(arguments: Namespace) -> int:
    from pipeline.tools.inspect import explain, listing

    show(explain(arguments.stage) if arguments.stage else listing())
    return 0


def draw(arguments: Namespace) -> int:
    from pipeline.tools.draw import dot, mermaid

    show((mermaid if arguments.format == "mermaid" else dot)(load(arguments, arguments.graph)))
    return 0


def schema(arguments: Namespace) -> int:
    from pipeline.tools.schema import schema_text

    show(schema_text())
    return 0


def devices(arguments: Namespace) -> int:
    from pipeline.ends.mic import list_devices

    show(list_devices())
    return 0


def doctor(arguments: Namespace) -> int:
    from pipeline.tools.doctor import examine

    report = examine()
    show(json.dumps(report.as_json(), indent=1) if arguments.json else report.text())
    return 0


def warmup(arguments: Namespace) -> int:
    from pipeline.tools.warmup import warm_up

    show(str(warm_up(load(arguments, arguments.graph))))
    return 0


def weights(arguments: Namespace) -> int:
    from pipeline.tools.weights import describe

    show("\n".join(describe(arguments.file).lines(tensors=arguments.tensors)))
    return 0


def random_weights(arguments: Namespace) -> int:
    from pipeline.tools.weights import random_weights as write

    with progress(f"writing {arguments.out}") as report:
        write(arguments.like, Path(arguments.out), seed=arguments.seed, progress=report)
    return 0


def quantize(arguments: Namespace) -> int:
    from pipeline.tools.quantize import quantize as convert

    with progress(f"writing {arguments.out}") as report:
        convert(Path(arguments.source), Path(arguments.out), kind=arguments.kind, progress=report)
    return 0


def load(arguments: Namespace, where: str) -> Graph:
    """The graph a command names, with its overrides."""
    params = dict(arguments.params)
    for name in ("weights", "backend"):
        if getattr(arguments, name) is not None:
            params[name] = getattr(arguments, name)
    return load_graph(where, sets=arguments.sets, params=params, allow_import=arguments.allow_import)


def loaded(graph: Graph, **options: Any) -> Run:
    """`Run(graph, **options)`; says which model is about to speak, where that might not be what the user
    expects.
    """
    from pipeline.tools.doctor import built_in

    if graph.weights and built_in(graph.weights):
        say(
            "using the built-in small model: letters, numbers, dates, commands and coffee orders in English; "
            "name another with --weights or VOXTRAL"
        )
    with progress("loading") as report:
        return Run(graph, on_load=report, **options)


def show(text: str) -> None:
    """What the user asked for, on standard output.

    Raises
    ------
    SinkError    if it cannot be written; SinkClosed if its reader has gone
    """
    out = Output()
    out.open()
    out.write(f"{text}\n")
    out.close()


def notes(running: Run) -> None:
    """What the sources wanted known, such as samples they had to replace."""
    for note in running.notes:
        say(note)


@contextmanager
def stopping(running: Run) -> Iterator[list[int]]:
    """^C stops the hearing, delivers what is known and fills the yielded list; a second one interrupts at
    once, and so does the first while a source keeps us waiting to be opened.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1 or running.opening:
            raise KeyboardInterrupt
        running.stop()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def figures(arguments: Namespace, report: dict[str, Any]) -> Iterator[None]:
    """Hands out what the run reports, where it was asked for; a file that cannot be written is known before
    the run.
    """
    out = Output(arguments.metrics_json) if arguments.metrics_json is not None else None
    if out is not None:
        out.open()
    try:
        yield
    finally:
        if arguments.metrics and report:
            say(table(report))
        if out is not None:
            out.write(json.dumps(report, indent=1) + "\n")
            out.close()


def table(report: dict[str, Any]) -> str:
    """`Metrics.report()` for people."""
    lines = [f"{'stage':22} {'items':>9} {'steps':>8} {'ms/step':>9} {'worst ms':>9} {'rtf':>8}"]
    for name, m in report["stages"].items():
        more = "  ".join(
            f"{k} {v:g}"
            for k, v in m.items()
            if k not in ("items", "steps", "busy_s", "mean_ms", "worst_ms", "rtf")
        )
        rtf = "-" if m["rtf"] is None else f"{m['rtf']:.4f}"
        lines.append(
            f"{name:22} {m['items']:9} {m['steps']:8} {m['mean_ms']:9.3f} {m['worst_ms']:9.2f} "
            f"{rtf:>8}  {more}".rstrip()
        )
    for s in report["sessions"]:
        lines.append(
            f"{s['name']}: {s['audio_s']:.2f} s of audio, worst lag {1000 * s['worst_lag_s']:.0f} ms, "
            f"at most {s['queued_s']:.2f} s queued, {s['dropped_s']:.2f} s dropped, {s['pieces']} pieces"
        )
    rtf = report["rtf"]
    lines.append(
        f"real-time factor {'-' if rtf is None else f'{rtf:.4f}'}: "
        f"{report['busy_s']:.2f} s busy, {report['wall_s']:.2f} s in all"
    )
    return "\n".join(lines)
