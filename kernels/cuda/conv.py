"""Causal convolution as one matrix product over patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.device import Device
from kernels.cuda.linear import linear
from kernels.errors import ShapeError

THREADS = 128


def conv1d(
    out: Any, tail: Any, x: Any, w: Any, bias: Any | None, stride: int, active: Any, *, device: Device
) -> None:
    """out [B, T / stride, N]: x [B, T, C] behind `tail` [B, k - stride, C], convolved with w [N, C, k]."""
    lanes, items, channels = x.shape
    rows, _, taps = w.shape
    steps, kept = items // stride, taps - stride
    fits = w.shape[1] == channels and items % stride == 0 and out.shape == (lanes, steps, rows)
    if not fits or tail.shape != (lanes, kept, channels) or active.shape != (lanes,):
        raise ShapeError(
            f"conv1d: x {x.shape} behind tail {tail.shape} with w {w.shape} and stride {stride} "
            f"does not fit out {out.shape} and active {active.shape}"
        )
    if not lanes * items * channels:
        return
    patches = device.scratch("conv.patches", (lanes * steps, channels * taps), np.float32)
    sizes = np.int32(items), np.int32(channels), np.int32(taps), np.int32(stride)
    grid = steps, lanes, -(-channels // THREADS)
    device.kernel("conv", "patches")(grid, (THREADS,), (patches, tail, x, *sizes))
    flat = out.reshape(lanes * steps, rows)
    linear(flat, patches, w.reshape(rows, channels * taps), bias, device=device)
    if kept:
        args = (tail, x, active, np.int32(items), np.int32(channels), np.int32(kept))
        device.kernel("conv", "keep_tail")((-(-channels // THREADS), lanes), (THREADS,), args)
