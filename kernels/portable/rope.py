"""Rotary positions, interleaved: a pair (2i, 2i+1) is a complex number, and turning it one multiplication."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.errors import ShapeError

Turns = Callable[[bytes, int, int, float], np.ndarray]


def rope(x: np.ndarray, position: np.ndarray, theta: float, turns: Turns) -> None:
    """Rotate x [B, T, H, D] in place by position[b] + t; `turns` is the function below, or a memory of it."""
    lanes, items, _, width = x.shape
    if width % 2 or position.shape != (lanes,):
        raise ShapeError(f"rope: x {x.shape} needs an even width and {lanes} positions, not {position.shape}")
    assert x.flags.c_contiguous, "rope reads pairs as complex numbers"
    pairs = x.view(np.complex64)
    np.multiply(pairs, turns(position.tobytes(), items, width, theta), out=pairs)


def turns(positions: bytes, items: int, width: int, theta: float) -> np.ndarray:
    """exp(j p theta^(-2i / D)) as complex64 [B, T, 1, D / 2]; `positions` holds the first of each lane, i32.

    Angles are float64: an hour at 50 Hz is position 180 000, and its f32 angle would be off by 0.008 radian.
    """
    first = np.frombuffer(positions, np.int32).astype(np.float64)
    rate = theta ** (-np.arange(0, width, 2) / width)  # [D / 2]
    angle = (first[:, None] + np.arange(items))[:, :, None, None] * rate
    return np.exp(1j * angle).astype(np.complex64)
