"""`bench --kernels`: whose kernels are measured, the GPU's or the processor's, and where their figures go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backends import AUTO
from pipeline.errors import GraphError
from pipeline.graph import Graph
from pipeline.opening import open_chosen
from pipeline.tools.card_bench import bench_gpu
from pipeline.tools.card_tables import CUDA, markdown
from pipeline.tools.cpu_bench import bench_cpu
from pipeline.tools.cpu_figures import CPU
from pipeline.tools.cpu_run import CpuSweep
from pipeline.tools.evaluate import read_manifest
from pipeline.tools.records import FILE

SECTIONS = {"cpu": CPU, "cuda": CUDA}


@dataclass(frozen=True, slots=True)
class Measured:
    """What the kernels of `backend` came to, as Markdown and as plain values."""

    backend: str
    markdown: str
    told: dict[str, Any]


def wanted(
    graph: Graph, kernels: bool | None, record: bool, budget_s: float, recordings: Path | None = None
) -> str:
    """The backend whose kernels are to be measured, empty for none.

    Whatever would be missed after ten minutes is missed now: a device, recordings, or the file that figures
    go into.

    Raises
    ------
    GraphError, SourceError, BackendMissing
    """
    if not budget_s > 0:
        raise GraphError(f"bench: budget should be more than 0 seconds, found {budget_s:g}")
    if record and kernels is False:
        raise GraphError("bench: --record is for the figures of kernels, which --no-kernels leaves out")
    for section in SECTIONS.values() if record else ():
        section.check(Path(FILE))
    if kernels is False:
        return ""
    if recordings is not None:
        read_manifest(recordings)
    asked = bool(record or kernels)
    name = graph.backend
    if name == AUTO or (asked and name in SECTIONS):
        name = open_chosen(name, graph.backend_options).name
    if asked and name not in SECTIONS:
        raise GraphError(f"bench: the backend {name} has no kernels to measure; name one: {_names()}")
    return name if name in SECTIONS else ""


def bench_kernels(
    name: str, graph: Graph, budget_s: float, *, record: bool = False, recordings: Path | None = None
) -> Measured:
    """The figures of the backend called `name`, in BENCHMARKS.md as well where asked for.

    recordings : a manifest, for what the processor's 8-bit activations cost in words
    """
    if name == "cuda":
        card = bench_gpu(budget_s)
        found = Measured(name, markdown(card), card.as_json())
    else:
        sweep = CpuSweep() if recordings is None else CpuSweep(recordings=recordings)
        processor = bench_cpu(budget_s, graph.backend_options, sweep)
        found = Measured(name, processor.markdown(), processor.as_json())
    if record:
        SECTIONS[name].write(found.markdown, Path(FILE))
    return found


def _names() -> str:
    return " or ".join(f"--backend {name}" for name in SECTIONS)
