"""`warmup`: compile the kernels of a graph's backend now, so that no run has to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kernels.cuda.backend import Cuda
from pipeline.errors import PipelineError
from pipeline.graph import Graph
from pipeline.opening import compile_kernels, open_chosen, reporter
from pipeline.tools.kept import Kept, kept_for


@dataclass(frozen=True, slots=True)
class Warm:
    """A backend that is ready.

    isa : its instruction set, where it has one; seconds : until all its kernels were there
    """

    backend: str
    isa: str
    seconds: float
    kept: Kept | None

    def __str__(self) -> str:
        if self.kept is None:
            return f"{self.backend}: nothing to compile"
        name = f"{self.backend}, {self.isa}" if self.isa else self.backend
        return f"{name}: kernels are ready after {self.seconds:.1f} s and kept, {self.kept}"


def warm_up(graph: Graph) -> Warm:
    """Open the backend that `graph` names with all its kernels, which are the same for every model.

    Raises
    ------
    PipelineError   what is compiled cannot be kept; says where, and the cure
    BackendMissing, CompileError
    """
    started = time.perf_counter()
    backend = open_chosen(graph.backend, graph.backend_options)
    if isinstance(backend, Cuda):
        compile_kernels(backend.device, reporter(backend.name))
    spent = time.perf_counter() - started
    kept = kept_for(backend)
    if kept is not None and not kept.writable:
        raise PipelineError(f"warmup: {kept.folder} cannot be written: every start compiles; {kept.cure}")
    return Warm(backend.name, getattr(backend, "isa", ""), spent, kept)
