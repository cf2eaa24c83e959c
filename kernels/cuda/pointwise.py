"""One value in, one value out; `out` may be an operand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.device import Device
from kernels.errors import ShapeError

THREADS = 256
FLOATS_A_THREAD = 4  # one 16-byte load
BLOCKS_A_PROCESSOR = 8  # 2048 threads, all that one holds; the rest of a larger array is taken in rounds


def add(out: Any, x: Any, y: Any, *, device: Device) -> None:
    """out = x + y."""
    _launch("add", out, x, y, device=device)


def gelu(out: Any, x: Any, *, device: Device) -> None:
    """out = x / 2 * (1 + erf(x / sqrt(2)))."""
    _launch("gelu", out, x, device=device)


def elu(out: Any, x: Any, *, device: Device) -> None:
    """out = x where x > 0, else exp(x) - 1."""
    _launch("elu", out, x, device=device)


def silu_mul(out: Any, gate: Any, up: Any, *, device: Device) -> None:
    """out = gate * sigmoid(gate) * up."""
    _launch("silu_mul", out, gate, up, device=device)


def _launch(name: str, out: Any, *operands: Any, device: Device) -> None:
    for operand in operands:
        if operand.shape != out.shape:
            raise ShapeError(f"{name}: out is {out.shape}, but an operand {operand.shape}")
    count = math.prod(out.shape)
    if count:
        blocks = min(-(-count // (THREADS * FLOATS_A_THREAD)), BLOCKS_A_PROCESSOR * device.processors)
        device.kernel("pointwise", name)((blocks,), (THREADS,), (out, *operands, np.uint64(count)))
