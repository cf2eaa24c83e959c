"""Composite ops in one launch each, over Q4_0 in fragment order and up to 64 rows of x.

Other weights, layouts and sizes take the spelling of `kernels.fused` in basic ops.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import fused
from kernels.cuda import attention, q4
from kernels.cuda.device import NULL, Device
from kernels.cuda.weights import in_fragments
from kernels.fused import GateUpWeights, QkvWeights
from kernels.tensor import QuantTensor, Ring

if TYPE_CHECKING:
    from kernels.cuda.backend import Cuda

GATE_UP_ROWS = 32  # two matrices at once leave no registers for more


def norm_qkv_rope_append(
    ops: Cuda, q: Any, ring: Ring, x: Any, w: QkvWeights, active: Any, *,
    eps: float, theta: float, h: Any, k: Any, v: Any,
) -> None:
    """See `kernels.fused`. A ring of bytes takes its keys and values from k and v by a second launch."""
    lanes, items, columns = x.shape
    kept, capacity, width = ring.k.shape[1:]
    if width % 2 or not _fits(lanes * items, w.q, w.k, w.v):
        fused.norm_qkv_rope_append.__wrapped__(  # type: ignore[attr-defined]
            ops, q, ring, x, w, active, eps=eps, theta=theta, h=h, k=k, v=v
        )
        return
    device, bytewise = ops.device, ring.k_scale is not None
    flat = x.reshape(lanes * items, columns)
    plan = q4.plan(lanes * items, sum(len(one.tiles[0]) for one in (w.q, w.k, w.v)), columns, device=device)
    ticket = device.scratch("fused ticket", (1,), np.uint32)
    rings = (NULL, NULL) if bytewise else (ring.k, ring.v)
    sizes = (np.int32(n) for n in (lanes, items, q.shape[2], kept, width, capacity))
    device.kernel("fused", f"qkv_{plan.capacity}")(plan.grid, plan.block, (
        q, *rings, k, v, ring.count, active, ticket, *_normed(flat, w.gain, None, eps, plan, device),
        *w.q.tiles, _or_null(w.q_bias), *w.k.tiles, _or_null(w.k_bias), *w.v.tiles, _or_null(w.v_bias),
        *sizes, np.float64(math.log2(theta)), np.int32(columns), plan.share,
    ), shared_mem=plan.shared)  # fmt: skip
    if bytewise:
        attention.append(ring, k, v, active, device=device)


def gate_up_silu(ops: Cuda, out: Any, x: Any, w: GateUpWeights, *, eps: float, h: Any, up: Any) -> None:
    """See `kernels.fused`."""
    rows, columns, outputs = math.prod(x.shape[:-1]), x.shape[-1], out.shape[-1]
    if not _fits(rows, w.gate, w.up):
        fused.gate_up_silu.__wrapped__(ops, out, x, w, eps=eps, h=h, up=up)  # type: ignore[attr-defined]
        return
    device, flat_x, flat_out = ops.device, x.reshape(rows, columns), out.reshape(rows, outputs)
    for start in range(0, rows, GATE_UP_ROWS):
        some = flat_x[start : start + GATE_UP_ROWS]
        plan = q4.plan(len(some), len(w.gate.tiles[0]), columns, matrices=2, device=device)
        sizes = (np.int32(n) for n in (len(some), columns, outputs))
        device.kernel("fused", f"gate_up_{plan.capacity}")(plan.grid, plan.block, (
            flat_out[start : start + GATE_UP_ROWS],
            *_scaled(_normed(some, w.gain, w.scale, eps, plan, device), w.scale),
            *w.gate.tiles, *w.up.tiles, *sizes, plan.share,
        ), shared_mem=plan.shared)  # fmt: skip


def linear_residual(ops: Cuda, x: Any, h: Any, w: Any, bias: Any | None = None, *, y: Any) -> None:
    """See `kernels.fused`."""
    rows, columns, outputs = math.prod(h.shape[:-1]), h.shape[-1], x.shape[-1]
    if not _fits(rows, w):
        fused.linear_residual.__wrapped__(ops, x, h, w, bias, y=y)  # type: ignore[attr-defined]
        return
    device, flat = ops.device, h.reshape(rows, columns)
    plan = q4.plan(rows, len(w.tiles[0]), columns, device=device)
    source = (flat, NULL, NULL)
    if plan.capacity != q4.STAGED_ROWS:
        source = (NULL, *q4.split(flat, plan.capacity, device=device))
    sizes = (np.int32(n) for n in (rows, columns, outputs))
    device.kernel("fused", f"residual_{plan.capacity}")(
        plan.grid, plan.block, (x, *source, *w.tiles, _or_null(bias), *sizes, plan.share),
        shared_mem=plan.shared,
    )  # fmt: skip


def norm_head_pick(
    ops: Cuda, picked: Any, x: Any, gain: Any, table: Any, run: Any, blank: int, patience: int, slope: float,
    limit: float, active: Any, *, eps: float, h: Any, logits: Any,
) -> None:
    """See `kernels.fused`. The logits stay in the registers of those who add them up."""
    rows, columns = x.shape
    if not _fits(rows, table):
        fused.norm_head_pick.__wrapped__(  # type: ignore[attr-defined]
            ops, picked, x, gain, table, run, blank, patience, slope, limit, active,
            eps=eps, h=h, logits=logits,
        )  # fmt: skip
        return
    device = ops.device
    plan = q4.plan(rows, len(table.tiles[0]), columns, device=device)
    ticket = device.scratch("fused ticket", (1,), np.uint32)
    parts = device.scratch("fused parts", (rows, plan.grid[0]), np.uint64)
    guard = np.int32(blank), np.int32(patience), np.float64(slope), np.float64(limit)
    sizes = (np.int32(n) for n in (rows, columns, table.shape[0]))
    device.kernel("fused", f"head_{plan.capacity}")(plan.grid, plan.block, (
        picked, *_normed(x, gain, None, eps, plan, device), *table.tiles, run, *guard, active, parts, ticket,
        *sizes, plan.share,
    ), shared_mem=plan.shared)  # fmt: skip


def _fits(rows: int, *weights: Any) -> bool:
    """Whether all of `weights` lie in fragments, and so many rows of x fit a launch."""
    return 0 < rows <= q4.MOST_ROWS and all(
        isinstance(w, QuantTensor) and w.kind == "q4_0" and in_fragments(w) for w in weights
    )


def _normed(
    x: Any, gain: Any, scale: Any | None, eps: float, plan: q4.Plan, device: Device
) -> tuple[Any, ...]:
    """x, gain, eps, terms and unscale of a kernel; the last two where blocks do not stage x themselves."""
    rows, columns = x.shape
    if plan.capacity == q4.STAGED_ROWS:
        return x, gain, np.float32(eps), NULL, NULL
    terms, unscale = q4.split_room(rows, columns, plan.capacity, device=device)
    device.kernel("fused", "norm_split")((rows,), (256,), (
        terms, unscale, x, gain, _or_null(scale), np.float32(eps),
        np.int32(columns), np.int32(2 * plan.capacity),
    ))  # fmt: skip
    return x, gain, np.float32(eps), terms, unscale


def _scaled(source: tuple[Any, ...], scale: Any | None) -> tuple[Any, ...]:
    """`source` with the scale behind the gain."""
    x, gain, *rest = source
    return x, gain, _or_null(scale), *rest


def _or_null(array: Any | None) -> Any:
    return NULL if array is None else array
