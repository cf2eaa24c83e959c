"""Rotary positions, interleaved: one block per item, whose angles all heads share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.device import Device
from kernels.errors import ShapeError

MOST_THREADS = 1024
MOST_WIDTH = 8192  # the angles of an item lie in shared memory, 4 bytes a column; every device has 32 KB


def rope(x: Any, position: Any, theta: float, *, device: Device) -> None:
    """Rotate x [B, T, H, D] in place; item t of lane b stands at position[b] + t."""
    lanes, items, heads, width = x.shape
    if width % 2 or width > MOST_WIDTH or position.shape != (lanes,):
        raise ShapeError(
            f"rope: x {x.shape} needs an even width up to {MOST_WIDTH} and {lanes} positions,"
            f" not {position.shape}"
        )
    pairs = width // 2
    if lanes * items * heads * pairs == 0:
        return
    block = min(MOST_THREADS, -(-heads * pairs // 32) * 32)
    args = x, position, log2_step(theta, width), np.int32(heads), np.int32(width)
    device.kernel("rope", "rope")((items, lanes), (block,), args, shared_mem=8 * pairs)


def log2_step(theta: float, width: int) -> np.float64:
    """What the kernels take for theta: log2 of how much less each pair turns than the one before."""
    return np.float64(-2 * math.log2(theta) / width)
