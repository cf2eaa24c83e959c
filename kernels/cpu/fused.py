"""Composite ops with one conversion of activations for all products that share them, and residuals added as
products are stored. Each gives the bits of its spelling in kernels/fused.py.
"""

from __future__ import annotations

from typing import Any

from kernels.cpu.attention import append, attend
from kernels.cpu.linear import activations, product
from kernels.cpu.norm import rms_norm
from kernels.cpu.plan import Steps
from kernels.cpu.pointwise import silu_mul
from kernels.cpu.rope import rope
from kernels.fused import GateUpWeights, QkvWeights
from kernels.tensor import Ring


def norm_qkv_rope_append(
    q: Any, ring: Ring, x: Any, w: QkvWeights, active: Any, *, eps: float, theta: float, h: Any, k: Any,
    v: Any, steps: Steps,
) -> None:
    """Queries of x [B, T, C] into q [B, T, H, D], rotated; its keys, rotated, and values behind `ring`."""
    flat = (*x.shape[:2], -1)
    rms_norm(h, x, w.gain, eps, steps=steps)
    rows = activations(h, (w.q, w.k, w.v), steps)
    since = steps.records
    for out, weight, bias in ((q, w.q, w.q_bias), (k, w.k, w.k_bias), (v, w.v, w.v_bias)):
        product(out.reshape(*flat), rows, weight, bias, steps=steps)
    steps.join(since)
    rope(q, ring.count, theta, steps=steps)
    rope(k, ring.count, theta, steps=steps)
    append(ring, k, v, active, steps=steps)


def attend_linear_residual(
    x: Any, q: Any, ring: Ring, window: int, w: Any, bias: Any | None = None, *, mix: Any, y: Any,
    steps: Steps,
) -> None:
    """x [B, T, C] += w [C, H * D] @ attend(q [B, T, H, D]) (+ bias [C])."""
    attend(mix, q, ring, window, steps=steps)
    linear_residual(x, mix.reshape(*x.shape[:2], -1), w, bias, y=y, steps=steps)


def gate_up_silu(out: Any, x: Any, w: GateUpWeights, *, eps: float, h: Any, up: Any, steps: Steps) -> None:
    """out [B, T, N] = silu(gate(h)) * up(h), where h is the norm of x [B, T, C]."""
    rms_norm(h, x, w.gain, eps, w.scale, steps=steps)
    rows = activations(h, (w.gate, w.up), steps)
    since = steps.records
    product(out, rows, w.gate, steps=steps)
    product(up, rows, w.up, steps=steps)
    steps.join(since)
    silu_mul(out, out, up, steps=steps)


def linear_residual(x: Any, h: Any, w: Any, bias: Any | None = None, *, y: Any, steps: Steps) -> None:
    """x [B, T, N] += w [N, M] @ h [B, T, M] (+ bias [N]); y is not needed here."""
    product(x, activations(h, (w,), steps), w, bias, added=x, steps=steps)
