"""A measurement of a processor under way: what is swept, what has been found, and how long it may go on."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from kernels.cpu.backend import Cpu
from pipeline.opening import open_chosen
from pipeline.progress import say
from pipeline.tools import machine
from pipeline.tools.card_run import SPARE, TIME_UP
from pipeline.tools.cpu_clock import Patience
from pipeline.tools.cpu_figures import Line
from pipeline.tools.machine import size
from stages.voxtral.config import OFFICIAL, Config

RECORDINGS = Path(__file__).parents[2] / "examples" / "audio" / "transcripts.tsv"


@dataclass(frozen=True, slots=True)
class CpuSweep:
    """What is measured.

    config : of the model of real size; position : of its decoder
    pool_bytes : weights of one shape are repeated to this size and used in turn, so that none is found in a
        cache; window_bytes : read or multiplied in one sample, about half a millisecond
    graph : of the built-in model, which is held against the portable backend; live_s : of it, block by block
    weights : of the built-in model in blocks, whose activations become bytes
    recordings : a manifest of what is said in recordings nobody trained on
    """

    config: Config = OFFICIAL
    position: int = 750
    pool_bytes: int = 144 << 20
    window_bytes: int = 16 << 20
    graph: str = "file"
    live_s: float = 2.0
    weights: str = "small-voxtral-q4_0.gguf"
    recordings: Path = RECORDINGS


@dataclass(slots=True)
class CpuRun:
    """What the parts of the measurement share.

    options : of the backend, as the graph has them
    budget_s : no figure is begun after it; patience : for one comparison
    """

    sweep: CpuSweep
    options: Mapping[str, Any] = field(default_factory=dict)
    budget_s: float = 540.0
    patience: Patience = field(default_factory=Patience)
    lines: list[Line] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self._started

    @property
    def over(self) -> bool:
        return self.spent_s >= self.budget_s

    @property
    def long_patience(self) -> Patience:
        """For samples of a tenth of a second, few of which nobody disturbs."""
        return replace(self.patience, seconds=3 * self.patience.seconds)

    def add(self, line: Line) -> None:
        self.lines.append(line)

    def begin(self, what: str) -> None:
        """Say what comes next, and how much of the time is spent."""
        say(f"{self.spent_s:4.0f} s  {what}")

    def open(self, **options: Any) -> Cpu:
        """The backend as the graph wants it, but for `options`."""
        return cast(Cpu, open_chosen("cpu", {**self.options, **options}))

    def short_of(self, nbytes: int) -> str:
        """What keeps a model of so many bytes from being measured; empty where nothing does."""
        if self.over:
            return TIME_UP
        gc.collect()  # recorded steps and their buffers hold each other until looked for
        free = machine.memory_available()
        if free is not None and SPARE * nbytes > free:
            return f"needs {size(nbytes)} of memory, {size(free)} are free"
        return ""
