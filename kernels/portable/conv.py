"""Causal convolution as one matrix product over patches."""

from __future__ import annotations

import numpy as np

from kernels.errors import ShapeError
from kernels.portable.linear import product


def conv1d(
    out: np.ndarray, tail: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, stride: int,
    active: np.ndarray,
) -> None:
    """out [B, T / stride, N]: x [B, T, C] behind `tail` [B, k - stride, C], convolved with w [N, C, k]."""
    lanes, items, channels = x.shape
    rows, _, taps = w.shape
    steps = items // stride
    fits = x.shape[2] == w.shape[1] and items % stride == 0 and out.shape == (lanes, steps, rows)
    if not fits or tail.shape != (lanes, taps - stride, channels):
        raise ShapeError(
            f"conv1d: x {x.shape} behind tail {tail.shape} with w {w.shape} and stride {stride} "
            f"does not fit out {out.shape}"
        )
    assert out.flags.c_contiguous, "conv1d writes through a flat view of out"
    heard = np.concatenate((tail, x), axis=1)  # [B, T + k - stride, C]
    patches = np.empty((lanes, steps, channels, taps), np.float32)
    for tap in range(taps):
        patches[..., tap] = heard[:, tap : tap + items : stride]
    flat = patches.reshape(lanes * steps, channels * taps)
    product(out.reshape(lanes * steps, rows), flat, w.reshape(rows, channels * taps))
    if bias is not None:
        np.add(out, bias, out=out)
    on = np.flatnonzero(active)
    tail[on] = heard[on, items:]
