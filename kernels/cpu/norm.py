"""Normalisation over the last axis."""

from __future__ import annotations

from typing import Any

from kernels.cpu.plan import Steps, bits
from kernels.errors import ShapeError


def rms_norm(
    out: Any, x: Any, gain: Any, eps: float, scale: Any | None = None, *, steps: Steps
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * gain [C] (* (1 + scale [C]))."""
    rows, width = _rows("rms_norm", out, x, gain, *(() if scale is None else (scale,)))
    operands = steps.at(out), steps.at(x), steps.at(gain), steps.at(scale)
    steps.add("rms_norm", rows, *operands, width, bits(eps), cost=8 * x.size)


def layer_norm(out: Any, x: Any, gain: Any, bias: Any, eps: float, *, steps: Steps) -> None:
    """out = (x - mean) / sqrt(var + eps) * gain + bias."""
    rows, width = _rows("layer_norm", out, x, gain, bias)
    operands = steps.at(out), steps.at(x), steps.at(gain), steps.at(bias)
    steps.add("layer_norm", rows, *operands, width, bits(eps), cost=8 * x.size)


def _rows(op: str, out: Any, x: Any, *vectors: Any) -> tuple[int, int]:
    """Rows of x and their width, once everything fits."""
    width = x.shape[-1]
    if out.shape != x.shape or any(vector.shape != (width,) for vector in vectors):
        found = ", ".join(str(vector.shape) for vector in vectors)
        raise ShapeError(f"{op}: x {x.shape} with {found} does not fit out {out.shape}")
    return x.size // max(1, width), width
