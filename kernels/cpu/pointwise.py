"""One value in, one value out; `out` may be an operand."""

from __future__ import annotations

from typing import Any

from kernels.cpu.layout import PIECE
from kernels.cpu.plan import Steps
from kernels.errors import ShapeError


def add(out: Any, x: Any, y: Any, *, steps: Steps) -> None:
    """out = x + y."""
    _each("add", out, x, y, steps=steps)


def gelu(out: Any, x: Any, *, steps: Steps) -> None:
    """out = x / 2 * (1 + erf(x / sqrt(2)))."""
    _each("gelu", out, x, steps=steps)


def elu(out: Any, x: Any, *, steps: Steps) -> None:
    """out = x where x > 0, else exp(x) - 1."""
    _each("elu", out, x, steps=steps)


def silu_mul(out: Any, gate: Any, up: Any, *, steps: Steps) -> None:
    """out = gate * sigmoid(gate) * up."""
    _each("silu_mul", out, gate, up, steps=steps)


def _each(op: str, *arrays: Any, steps: Steps) -> None:
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ShapeError(f"{op}: shapes differ: {', '.join(str(array.shape) for array in arrays)}")
    size = arrays[0].size
    operands = [steps.at(array) for array in arrays]
    steps.add(op, -(-size // PIECE), *operands, size, cost=4 * len(arrays) * size)
