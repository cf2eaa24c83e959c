"""`bench` on a processor: what its memory gives, and what products, steps and a model take of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from typing import Any

from pipeline.opening import open_chosen
from pipeline.tools import machine
from pipeline.tools.cpu_clock import Patience
from pipeline.tools.cpu_figures import CpuReport
from pipeline.tools.cpu_products import measure_products
from pipeline.tools.cpu_run import CpuRun, CpuSweep
from pipeline.tools.cpu_steps import measure_all_threads, measure_one_thread
from pipeline.tools.cpu_words import measure_graph, measure_words

LIBRARIES = ("numba", "llvmlite", "numpy")
PARTS: tuple[Callable[[CpuRun], None], ...] = (
    measure_products,
    measure_one_thread,
    measure_all_threads,
    measure_graph,
    measure_words,
)


def bench_cpu(
    budget_s: float, options: Mapping[str, Any] | None = None, sweep: CpuSweep | None = None,
    patience: Patience | None = None,
) -> CpuReport:  # fmt: skip
    """Measure everything until the time is up; says what it begins.

    options : of the backend, by keyword
    """
    run = CpuRun(sweep or CpuSweep(), options or {}, budget_s, patience or Patience())
    for part in PARTS:
        part(run)
    run.begin("done")
    return CpuReport(about_cpu(run.options), tuple(run.lines))


def about_cpu(options: Mapping[str, Any]) -> dict[str, Any]:
    """All that a figure depends on, in the order in which it is shown."""
    host, ops = machine.describe_machine(), open_chosen("cpu", options)
    told = {name: getattr(ops, name) for name in ("isa", "activations", "kv", "threads")}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return {
        "date": f"{date.today().day} {date.today():%B %Y}",
        "machine": f"{host['cpu']}, {host['cores']} cores, {host['system']}",
        "backend": ", ".join(f"{name} {value}" for name, value in told.items()),
        "with": f"{host['python']}, {versions}",
    }
