"""NVIDIA GPUs: memory verbs, and the seven op files put together around one `Device`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from kernels import quant
from kernels.cuda import attention, conv, fused, linear, norm, pointwise, rope, select
from kernels.cuda.device import Device
from kernels.errors import KernelError, ShapeError
from kernels.tensor import Pending, QuantTensor, Ring, Tensor

DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32}
Kv = Literal["f16", "q8"]  # what keys and values may be kept as
Layout = Literal["fragment", "rows"]
KV, LAYOUTS = get_args(Kv), get_args(Layout)


class Cuda:
    """CuPy RawKernels on one GPU.

    device : the GPU; by default the first one that CuPy sees
    kv : keys and values as f16, or as 8-bit steps of one scale per position and head: half the memory, and
        an error of KV_Q8_ERROR in what attention gives
    layout : how Q4_0 is laid out at `adopt`: in the order of tensor core fragments (1 to 64 rows of x), or by
        rows for dp4a (1 to 4 rows; more go through f16)
    turn : to be held by a thread that calls ops or captures while others may: they share scratch, and what
        one queues while another records would be recorded

    Raises
    ------
    BackendMissing   no CuPy, no driver, a driver too old for the installed CuPy, no device, or one that is
        older than compute capability 7.5; the message says which, and the cure
    """

    name = "cuda"

    def __init__(self, device: Device | None = None, *, kv: Kv = "f16", layout: Layout = "fragment"):
        if kv not in KV:
            raise KernelError(f"cuda: kv is one of {', '.join(KV)}, found {kv!r}")
        if layout not in LAYOUTS:
            raise KernelError(f"cuda: layout is one of {', '.join(LAYOUTS)}, found {layout!r}")
        if device is None:
            from kernels.cuda.card import open_card  # CuPy comes in only when asked for

            device = open_card()
        self.device, self.kv, self.layout = device, kv, layout
        self.turn = threading.RLock()

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> Any:
        if dtype not in DTYPES:
            raise KernelError(f"zeros: no dtype is called {dtype!r}; there are {', '.join(DTYPES)}")
        return self.device.zeros(shape, DTYPES[dtype])

    def upload(self, array: np.ndarray, out: Any | None = None) -> Any:
        if array.dtype not in (np.float32, np.int32):
            raise KernelError(f"upload: expected f32 or i32, got {array.dtype}; convert it first")
        if out is not None and (out.shape != array.shape or out.dtype != array.dtype):
            raise ShapeError(f"upload: {array.dtype} {array.shape} does not fit {out.dtype} {out.shape}")
        return self.device.upload(array, out)

    def adopt(self, raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> Tensor | QuantTensor:
        """Matrices keep their kind, Q4_0 and Q8_0 repacked on the device; the rest is widened to f32."""
        expected = quant.nbytes(kind, shape)
        if raw.nbytes != expected:
            raise ShapeError(f"adopt: {kind} {shape} takes {expected} bytes, but {raw.nbytes} came")
        raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        if len(shape) != 2 or kind == "f32":
            return self.device.upload(quant.unpack(raw, kind, shape))
        return linear.adopt(raw, kind, shape, layout=self.layout, device=self.device)

    def fetch(self, tensor: Any) -> Pending:
        return self.device.fetch(tensor)

    def copy(self, tensor: Any, out: Any | None = None) -> Any:
        if out is not None and (out.shape != tensor.shape or out.dtype != tensor.dtype):
            raise ShapeError(f"copy: {tensor.dtype} {tensor.shape} does not fit {out.dtype} {out.shape}")
        return self.device.copy(tensor, out)

    def clear(self, tensor: Any, lane: int) -> None:
        self.device.clear(tensor[lane : lane + 1])

    def ring(self, lanes: int, heads: int, capacity: int, width: int) -> Ring:
        return attention.ring(lanes, heads, capacity, width, kv=self.kv, device=self.device)

    def ring_bytes(self, heads: int, capacity: int, width: int) -> int:
        return attention.ring_bytes(heads, capacity, width, kv=self.kv)

    def free_bytes(self) -> int | None:
        return self.device.free_bytes()

    def capture(self, fn: Callable[[], None]) -> Callable[[], None]:
        return self.device.record(fn)

    def linear(self, out: Any, x: Any, w: Any, bias: Any | None = None) -> None:
        linear.linear(out, x, w, bias, device=self.device)

    def embed(self, out: Any, ids: Any, table: Any) -> None:
        linear.embed(out, ids, table, device=self.device)

    def rms_norm(self, out: Any, x: Any, gain: Any, eps: float, scale: Any | None = None) -> None:
        norm.rms_norm(out, x, gain, eps, scale, device=self.device)

    def layer_norm(self, out: Any, x: Any, gain: Any, bias: Any, eps: float) -> None:
        norm.layer_norm(out, x, gain, bias, eps, device=self.device)

    def rope(self, x: Any, position: Any, theta: float) -> None:
        rope.rope(x, position, theta, device=self.device)

    def append(self, ring: Ring, k: Any, v: Any, active: Any) -> None:
        attention.append(ring, k, v, active, device=self.device)

    def attend(self, out: Any, q: Any, ring: Ring, window: int) -> None:
        attention.attend(out, q, ring, window, device=self.device)

    def conv1d(
        self, out: Any, tail: Any, x: Any, w: Any, bias: Any | None, stride: int, active: Any
    ) -> None:
        conv.conv1d(out, tail, x, w, bias, stride, active, device=self.device)

    def add(self, out: Any, x: Any, y: Any) -> None:
        pointwise.add(out, x, y, device=self.device)

    def gelu(self, out: Any, x: Any) -> None:
        pointwise.gelu(out, x, device=self.device)

    def elu(self, out: Any, x: Any) -> None:
        pointwise.elu(out, x, device=self.device)

    def silu_mul(self, out: Any, gate: Any, up: Any) -> None:
        pointwise.silu_mul(out, gate, up, device=self.device)

    def argmax(self, out: Any, x: Any) -> None:
        select.argmax(out, x, device=self.device)

    def nearest(self, out: Any, x: Any, codebook: Any) -> None:
        select.nearest(out, x, codebook, device=self.device)

    def pick(
        self, out: Any, x: Any, run: Any, blank: int, patience: int, slope: float, limit: float, active: Any
    ) -> None:
        select.pick(out, x, run, blank, patience, slope, limit, active, device=self.device)

    def advance(self, token: Any, picked: Any, prompt: Any, position: Any, active: Any) -> None:
        select.advance(token, picked, prompt, position, active, device=self.device)

    norm_qkv_rope_append = fused.norm_qkv_rope_append
    gate_up_silu = fused.gate_up_silu
    linear_residual = fused.linear_residual
    norm_head_pick = fused.norm_head_pick
