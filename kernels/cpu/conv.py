"""Causal convolution as one matrix product over patches."""

from __future__ import annotations

from typing import Any

from kernels.cpu.linear import Activations, product
from kernels.cpu.plan import I32, Steps
from kernels.errors import ShapeError


def conv1d(
    out: Any, tail: Any, x: Any, w: Any, bias: Any | None, stride: int, active: Any, *, steps: Steps
) -> None:
    """out [B, T / stride, N]: x [B, T, C] behind `tail` [B, k - stride, C], convolved with w [N, C, k]."""
    lanes, items, channels = x.shape
    rows, _, taps = w.shape
    produced = items // stride
    fits = x.shape[2] == w.shape[1] and items % stride == 0 and out.shape == (lanes, produced, rows)
    if not fits or tail.shape != (lanes, taps - stride, channels) or active.shape != (lanes,):
        raise ShapeError(
            f"conv1d: x {x.shape} behind tail {tail.shape} with w {w.shape} and stride {stride} "
            f"does not fit out {out.shape}"
        )
    width = channels * taps
    patches = steps.room("patches", 4 * lanes * produced * width)
    source, kept, geometry = steps.at(x), steps.at(tail), (items, channels, taps, stride)
    size = lanes * produced * width
    steps.add("patches", lanes * produced, patches, kept, source, *geometry, cost=8 * size)
    forms = {"f32": patches}
    product(out, Activations((lanes, produced), width, forms), w.reshape(rows, width), bias, steps=steps)
    steps.add("keep_tail", lanes, kept, source, steps.at(active, I32), items, channels, taps - stride)
