"""Normalisation over the last axis: one block per row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.device import NULL, Device
from kernels.errors import ShapeError

MOST_THREADS = 1024
COLUMNS_A_THREAD = 4  # until the block is full: enough loads in flight, and no thread without work


def rms_norm(
    out: Any, x: Any, gain: Any, eps: float, scale: Any | None = None, *, device: Device
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * gain [C] (* (1 + scale [C]))."""
    _check("rms_norm", out, x, gain=gain, scale=scale)
    _launch("rms_norm", (out, x, gain, NULL if scale is None else scale), eps, device)


def layer_norm(out: Any, x: Any, gain: Any, bias: Any, eps: float, *, device: Device) -> None:
    """out = (x - mean) / sqrt(var + eps) * gain + bias."""
    _check("layer_norm", out, x, gain=gain, bias=bias)
    _launch("layer_norm", (out, x, gain, bias), eps, device)


def _check(op: str, out: Any, x: Any, **vectors: Any) -> None:
    """`out` as `x` [..., C], every vector [C] or None."""
    if out.shape != x.shape:
        raise ShapeError(f"{op}: out is {out.shape}, but x {x.shape}")
    for name, vector in vectors.items():
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ShapeError(f"{op}: {name} is {vector.shape}, but x {x.shape}")


def _launch(name: str, arrays: tuple[Any, ...], eps: float, device: Device) -> None:
    *lead, columns = arrays[1].shape
    rows = math.prod(lead)
    if rows and columns:
        warps = -(-columns // (32 * COLUMNS_A_THREAD))
        block = min(MOST_THREADS, 32 * warps)
        device.kernel("norm", name)((rows,), (block,), (*arrays, np.float32(eps), np.int32(columns)))
