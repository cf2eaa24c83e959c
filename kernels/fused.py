"""Composite ops, spelled in the basic ones.

A transformer layer is four of these, and one more ends a decoder. A backend with a fused kernel defines a
method of the same name and arguments (without `ops`); it is then called instead, and the suite holds the two
equal. Scratch comes from the caller, because nothing allocates once a model is open; its content afterwards
is nobody's business.

    norm_qkv_rope_append(ops, q, ring, x, w, active, eps=eps, theta=theta, h=h, k=k, v=v)
    attend_linear_residual(ops, x, q, ring, window, wo, bo, mix=mix, y=y)
    gate_up_silu(ops, gate, x, w, eps=eps, h=h, up=up)
    linear_residual(ops, x, gate, w2, b2, y=y)

    norm_head_pick(ops, picked, x, gain, table, run, blank, patience, slope, limit, active, eps=eps, h=h,
                   logits=logits)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from kernels.backend import Backend
from kernels.tensor import Ring, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class QkvWeights:
    """What stands before an attention: a norm's gain [C] and three projections, each with or without bias."""

    gain: Tensor
    q: Any  # [H * D, C]
    k: Any  # [K * D, C]
    v: Any  # [K * D, C]
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GateUpWeights:
    """What opens a gated MLP: a norm's gain [C], an optional scale [C], and two projections without bias."""

    gain: Tensor
    gate: Any  # [N, C]
    up: Any  # [N, C]
    scale: Tensor | None = None


def _overridable(spelling: Callable[..., None]) -> Callable[..., None]:
    """Let a method of the same name on `ops` take the call; the spelling stays reachable as `__wrapped__`."""

    @wraps(spelling)
    def call(ops: Backend, *operands: Any, **scratch: Any) -> None:
        own = getattr(ops, spelling.__name__, None)
        if own is None:
            spelling(ops, *operands, **scratch)
        else:
            own(*operands, **scratch)

    return call


@_overridable
def norm_qkv_rope_append(
    ops: Backend, q: Tensor, ring: Ring, x: Tensor, w: QkvWeights, active: Tensor, *,
    eps: float, theta: float, h: Tensor, k: Tensor, v: Tensor,
) -> None:
    """Queries of x [B, T, C] into q [B, T, H, D], rotated; its keys, rotated, and values behind `ring`.

    h [B, T, C], k and v [B, T, K, D] : scratch
    Item t of lane b stands at position ring.count[b] + t, read before the append counts it.
    """
    flat = (*x.shape[:2], -1)
    ops.rms_norm(h, x, w.gain, eps)
    ops.linear(q.reshape(*flat), h, w.q, w.q_bias)
    ops.linear(k.reshape(*flat), h, w.k, w.k_bias)
    ops.linear(v.reshape(*flat), h, w.v, w.v_bias)
    ops.rope(q, ring.count, theta)
    ops.rope(k, ring.count, theta)
    ops.append(ring, k, v, active)


@_overridable
def attend_linear_residual(
    ops: Backend, x: Tensor, q: Tensor, ring: Ring, window: int, w: Any, bias: Tensor | None = None, *,
    mix: Tensor, y: Tensor,
) -> None:
    """x [B, T, C] += w [C, H * D] @ attend(q [B, T, H, D]) (+ bias [C]), over `window` positions of `ring`.

    mix [B, T, H, D], y [B, T, C] : scratch
    """
    ops.attend(mix, q, ring, window)
    linear_residual(ops, x, mix.reshape(*x.shape[:2], -1), w, bias, y=y)


@_overridable
def gate_up_silu(
    ops: Backend, out: Tensor, x: Tensor, w: GateUpWeights, *, eps: float, h: Tensor, up: Tensor
) -> None:
    """out [B, T, N] = silu(gate(h)) * up(h), where h is the norm of x [B, T, C].

    h [B, T, C], up [B, T, N] : scratch
    """
    ops.rms_norm(h, x, w.gain, eps, w.scale)
    ops.linear(out, h, w.gate)
    ops.linear(up, h, w.up)
    ops.silu_mul(out, out, up)


@_overridable
def linear_residual(
    ops: Backend, x: Tensor, h: Tensor, w: Any, bias: Tensor | None = None, *, y: Tensor
) -> None:
    """x [B, T, N] += w [N, M] @ h [B, T, M] (+ bias [N]); y [B, T, N] is scratch."""
    ops.linear(y, h, w, bias)
    ops.add(x, x, y)


@_overridable
def norm_head_pick(
    ops: Backend, picked: Tensor, x: Tensor, gain: Tensor, table: Any, run: Tensor, blank: int,
    patience: int, slope: float, limit: float, active: Tensor, *, eps: float, h: Tensor, logits: Tensor,
) -> None:
    """picked [B] i32 = the row of table [N, C] that answers x [B, C], normed, best; blanks as in `pick`.

    h [B, C], logits [B, N] : scratch
    """
    ops.rms_norm(h, x, gain, eps)
    ops.linear(logits, h, table)
    ops.pick(picked, logits, run, blank, patience, slope, limit, active)
