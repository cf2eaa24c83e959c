"""Processors: memory verbs, and the op files put together around recorded plans.

Nothing runs but plans (plan.py): an op called by itself is a plan of its few records, `capture` makes one of
all the ops of a step. So captured and uncaptured steps give the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from kernels import quant
from kernels.cpu import (
    attention,
    conv,
    fused,
    linear,
    machine,
    memory,
    norm,
    objects,
    pointwise,
    rope,
    select,
)
from kernels.cpu.machine import Report
from kernels.cpu.plan import Scratch, Steps
from kernels.cpu.team import Team, cores
from kernels.errors import KernelError, ShapeError
from kernels.fused import GateUpWeights, QkvWeights
from kernels.tensor import Pending, QuantTensor, Ring

DTYPES: dict[str, Any] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "i32": np.dtype(np.int32)}
Isa = Literal["auto", "avx512", "avx2", "neon", "generic"]
Activations = Literal["int8", "f32"]
Kv = Literal["f16", "f32"]


class Cpu:
    """Compiled kernels on the processor's cores.

    isa : avx512, avx2, neon or generic; "auto" is the best the host has
    activations : what x is turned into where weights are Q4_0 or Q8_0: bytes with a scale per 32 (5e-3 of a
        product, measured), or "f32" for none of that and half the speed
    kv : keys and values as f16 or f32
    threads : how many may work at once, 0 for the cores this process has. Never a matter of results
    cache : where compiled code is kept; by default the user's cache folder
    report : told, a line at a time, when kernels have to be compiled

    Raises
    ------
    BackendMissing   numba is not installed, or the instruction set is not that of this machine
    CompileError     a kernel did not build
    """

    name = "cpu"

    def __init__(
        self, *, isa: Isa = "auto", activations: Activations = "int8", kv: Kv = "f16", threads: int = 0,
        cache: str | Path | None = None, report: Report | None = None,
    ):  # fmt: skip
        for name, given, known in (("activations", activations, Activations), ("kv", kv, Kv)):
            if given not in get_args(known):
                raise KernelError(f"cpu: {name} is one of {', '.join(get_args(known))}, found {given!r}")
        if threads < 0:
            raise KernelError(f"cpu: threads is a number from 1, or 0 for all cores, found {threads!r}")
        machine.require()
        folder = objects.default_folder() if cache is None else Path(cache)
        self.isa, self.activations, self.kv = machine.choose(isa), activations, kv
        self._library = machine.library(self.isa, folder, report)
        self._team = Team(self._library, threads or cores())
        self._scratch, self._slabs = Scratch(), memory.Slabs()
        self._recording = threading.local()  # each thread records its own ops

    @property
    def threads(self) -> int:
        return self._team.threads

    def close(self) -> None:
        """Ends the threads; the backend goes on without them."""
        self._team.close()

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> np.ndarray:
        self._refuse("zeros")
        if dtype not in DTYPES:
            raise KernelError(f"zeros: no dtype is called {dtype!r}; there are {', '.join(DTYPES)}")
        return np.zeros(shape, DTYPES[dtype])

    def upload(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        self._refuse("upload")
        if array.dtype not in (np.float32, np.int32):
            raise KernelError(f"upload: expected f32 or i32, got {array.dtype}; convert it first")
        if out is None:
            return np.array(array, order="C")
        if out.shape != array.shape or out.dtype != array.dtype:
            raise ShapeError(f"upload: {array.dtype} {array.shape} does not fit {out.dtype} {out.shape}")
        out[...] = array
        return out

    def adopt(self, raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray | QuantTensor:
        """Always a copy: a matrix as stored, its blocks interleaved; anything else as f32."""
        self._refuse("adopt")
        expected = quant.nbytes(kind, shape)
        if raw.nbytes != expected:
            raise ShapeError(f"adopt: {kind} {shape} takes {expected} bytes, but {raw.nbytes} came")
        raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        if len(shape) != 2:
            return quant.unpack(raw, kind, shape)
        return memory.adopt(raw, kind, shape, self._library.height, self._slabs, self._do)

    def fetch(self, tensor: np.ndarray) -> Pending:
        self._refuse("fetch")
        taken = tensor.copy()
        return Pending(lambda: taken)

    def copy(self, tensor: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            self._refuse("copy to new memory")
            return tensor.copy()
        if out.shape != tensor.shape or out.dtype != tensor.dtype:
            raise ShapeError(f"copy: {tensor.dtype} {tensor.shape} does not fit {out.dtype} {out.shape}")
        if self._recording_here is None:
            out[...] = tensor
        else:
            self._do(memory.copy, out, tensor)
        return out

    def clear(self, tensor: np.ndarray, lane: int) -> None:
        self._refuse("clear")
        tensor[lane] = 0

    def ring(self, lanes: int, heads: int, capacity: int, width: int) -> Ring:
        shape = (lanes, heads, capacity, width)
        return Ring(self.zeros(shape, self.kv), self.zeros(shape, self.kv), self.zeros((lanes,), "i32"))

    def ring_bytes(self, heads: int, capacity: int, width: int) -> int:
        return 2 * DTYPES[self.kv].itemsize * heads * capacity * width

    def free_bytes(self) -> int | None:
        return None

    def capture(self, fn: Callable[[], None]) -> Callable[[], None]:
        """Nothing runs while `fn` is recorded.

        Raises
        ------
        KernelError   if `fn` allocates, reads back or uploads: a replay could not do it again
        """
        self._refuse("capture")
        steps = self._recording.steps = self._steps()
        try:
            fn()
        finally:
            self._recording.steps = None
        return partial(self._team.run, steps.plan())

    def linear(self, out: Any, x: Any, w: Any, bias: Any | None = None) -> None:
        self._do(linear.linear, out, x, w, bias)

    def embed(self, out: Any, ids: Any, table: Any) -> None:
        self._do(linear.embed, out, ids, table)

    def rms_norm(self, out: Any, x: Any, gain: Any, eps: float, scale: Any | None = None) -> None:
        self._do(norm.rms_norm, out, x, gain, eps, scale)

    def layer_norm(self, out: Any, x: Any, gain: Any, bias: Any, eps: float) -> None:
        self._do(norm.layer_norm, out, x, gain, bias, eps)

    def rope(self, x: Any, position: Any, theta: float) -> None:
        self._do(rope.rope, x, position, theta)

    def append(self, ring: Ring, k: Any, v: Any, active: Any) -> None:
        self._do(attention.append, ring, k, v, active)

    def attend(self, out: Any, q: Any, ring: Ring, window: int) -> None:
        self._do(attention.attend, out, q, ring, window)

    def conv1d(
        self, out: Any, tail: Any, x: Any, w: Any, bias: Any | None, stride: int, active: Any
    ) -> None:
        self._do(conv.conv1d, out, tail, x, w, bias, stride, active)

    def add(self, out: Any, x: Any, y: Any) -> None:
        self._do(pointwise.add, out, x, y)

    def gelu(self, out: Any, x: Any) -> None:
        self._do(pointwise.gelu, out, x)

    def elu(self, out: Any, x: Any) -> None:
        self._do(pointwise.elu, out, x)

    def silu_mul(self, out: Any, gate: Any, up: Any) -> None:
        self._do(pointwise.silu_mul, out, gate, up)

    def argmax(self, out: Any, x: Any) -> None:
        self._do(select.argmax, out, x)

    def nearest(self, out: Any, x: Any, codebook: Any) -> None:
        self._do(select.nearest, out, x, codebook)

    def pick(
        self, out: Any, x: Any, run: Any, blank: int, patience: int, slope: float, limit: float, active: Any
    ) -> None:
        self._do(select.pick, out, x, run, blank, patience, slope, limit, active)

    def advance(self, token: Any, picked: Any, prompt: Any, position: Any, active: Any) -> None:
        self._do(select.advance, token, picked, prompt, position, active)

    def norm_qkv_rope_append(
        self, q: Any, ring: Ring, x: Any, w: QkvWeights, active: Any, **scratch: Any
    ) -> None:
        self._do(fused.norm_qkv_rope_append, q, ring, x, w, active, **scratch)

    def attend_linear_residual(
        self, x: Any, q: Any, ring: Ring, window: int, w: Any, bias: Any | None = None, **scratch: Any
    ) -> None:
        self._do(fused.attend_linear_residual, x, q, ring, window, w, bias, **scratch)

    def gate_up_silu(self, out: Any, x: Any, w: GateUpWeights, **scratch: Any) -> None:
        self._do(fused.gate_up_silu, out, x, w, **scratch)

    def linear_residual(self, x: Any, h: Any, w: Any, bias: Any | None = None, **scratch: Any) -> None:
        self._do(fused.linear_residual, x, h, w, bias, **scratch)

    def _do(self, launch: Callable[..., None], *operands: Any, **named: Any) -> None:
        """Records what `launch` writes down, or runs it at once."""
        recording = self._recording_here
        steps = recording or self._steps()
        launch(*operands, **named, steps=steps)
        if recording is None:
            self._team.run(steps.plan())

    @property
    def _recording_here(self) -> Steps | None:
        """What this thread records, if it does."""
        return getattr(self._recording, "steps", None)

    def _steps(self) -> Steps:
        return Steps(self._library, self._scratch, self.activations == "f32")

    def _refuse(self, verb: str) -> None:
        """While a capture records in this thread, what a replay could not repeat is an error."""
        if self._recording_here is not None:
            raise KernelError(f"{verb}: a capture records ops alone; do this before it")
