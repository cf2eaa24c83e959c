"""`bench` on a GPU: what the card gives, what kernels and whole steps take of it, and what others take."""

from __future__ import annotations

from datetime import date
from importlib import metadata
from typing import Any, cast

from kernels import open_backend
from kernels.cuda.backend import Cuda
from kernels.cuda.card import look
from kernels.cuda.diagnosis import version
from pipeline.tools import machine
from pipeline.tools.card_clock import Effort, Stopwatch
from pipeline.tools.card_errors import measure_errors
from pipeline.tools.card_figures import CardReport
from pipeline.tools.card_model import random_checkpoint
from pipeline.tools.card_ops import measure_attention, measure_launches, measure_memory, measure_products
from pipeline.tools.card_peers import Peers
from pipeline.tools.card_run import CardRun, Sweep
from pipeline.tools.card_steps import measure_decode, measure_peers, measure_ticks

LIBRARIES = ("numpy", "torch", "transformers")


def bench_gpu(budget_s: float) -> CardReport:
    """`bench_card` with all its sizes on the first GPU."""
    return bench_card(cast(Cuda, open_backend("cuda")), effort=Effort(budget_s))


def bench_card(
    ops: Cuda, sweep: Sweep | None = None, effort: Effort | None = None, peers: Peers | None = None
) -> CardReport:
    """Measure everything, the goals' figures first, until the time is up; says what it begins.

    ops : keys and values as f16
    peers : by default torch and transformers on the GPU that they see
    """
    effort = effort or Effort()
    run, peers = CardRun(ops, sweep or Sweep(), Stopwatch(effort)), peers or Peers(effort)
    run.begin("memory and launches")
    measure_memory(run)
    measure_launches(run)
    checkpoint = random_checkpoint(run.sweep.config)
    measure_errors(run)
    measure_decode(run, checkpoint)
    measure_ticks(run, checkpoint)
    run.give_back()
    measure_products(run, peers)
    measure_attention(run, peers)
    run.give_back()
    measure_peers(run, peers)  # last, as compiling it may take minutes
    run.begin("done")
    return CardReport(about_card(ops), tuple(run.figures), tuple(run.errors), tuple(run.notes))


def about_card(ops: Cuda) -> dict[str, Any]:
    """All that a figure depends on, in the order in which it is shown."""
    device, facts, host = ops.device, look(), machine.describe_machine()
    about = {
        "date": f"{date.today().day} {date.today():%B %Y}",
        "card": f"{device.name}, compute capability {'.'.join(map(str, device.capability))}, "
        f"{device.processors} processors",
    }
    if facts.driver:
        driver = machine.nvidia_driver() or "of an unknown version"
        about["driver"] = f"{driver}, CUDA {version(facts.driver)}"
        about["CuPy"] = f"{facts.version} for CUDA {version(facts.built)}"
    found = [f"{name} {held}" for name in LIBRARIES if (held := _installed(name))]
    about["machine"] = f"{host['cpu']}, {host['cores']} cores, {host['system']}"
    about["with"] = f"{host['python']}, {', '.join(found)}"
    return about


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
