"""Rotary positions, interleaved. Angles are float64; cosine and sine of a position serve a whole step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from kernels.cpu.plan import I32, Steps, address_of
from kernels.errors import ShapeError

RATES_KEPT = 16


def rope(x: Any, position: Any, theta: float, *, steps: Steps) -> None:
    """Rotate pairs (2i, 2i+1) of x [B, T, H, D] in place; item t of lane b stands at position[b] + t."""
    lanes, items, heads, width = x.shape
    if width % 2 or position.shape != (lanes,):
        raise ShapeError(f"rope: x {x.shape} needs an even width and {lanes} positions, not {position.shape}")
    rates = _rates(theta, width)
    steps.held.append(rates)
    table = steps.own(("turns", lanes, items, width, theta), lanes * (8 + items * width * 4))
    first, turned = steps.at(position, I32), lanes * items * width
    steps.add("turns", lanes, first, address_of(rates), table, lanes, items, width, cost=8 * turned)
    steps.add("rope", lanes * items, steps.at(x), table, lanes, heads, width, cost=4 * x.size)


@lru_cache(maxsize=RATES_KEPT)
def _rates(theta: float, width: int) -> np.ndarray:
    """theta^(-2i / D), f64 [D / 2]."""
    return theta ** (-np.arange(0, width, 2) / width)
