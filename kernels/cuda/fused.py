"""Composite ops in one launch each, or a few, over Q4_0 in fragment order and up to 64 rows of x.

Other weights, layouts and sizes take the spelling of `kernels.fused` in basic ops.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import fused
from kernels.cuda import attention, q4, rope
from kernels.cuda.device import NULL, Device
from kernels.cuda.weights import in_fragments
from kernels.fused import GateUpWeights, QkvWeights
from kernels.tensor import QuantTensor, Ring

if TYPE_CHECKING:
    from kernels.cuda.backend import Cuda

QKV_ROWS = 32  # of a launch; more lanes take another
GATE_UP_ROWS = 16  # two matrices at once leave no registers for more


def norm_qkv_rope_append(
    ops: Cuda, q: Any, ring: Ring, x: Any, w: QkvWeights, active: Any, *,
    eps: float, theta: float, h: Any, k: Any, v: Any,
) -> None:
    """See `kernels.fused`. A ring of bytes takes its keys and values from k and v by a second launch."""
    lanes, items, _ = x.shape
    together = QKV_ROWS // items
    if ring.k.shape[3] % 2 or not together or not _fits(lanes * items, w.q, w.k, w.v):
        fused.norm_qkv_rope_append.__wrapped__(  # type: ignore[attr-defined]
            ops, q, ring, x, w, active, eps=eps, theta=theta, h=h, k=k, v=v
        )
        return
    for start in range(0, lanes, together):
        some = slice(start, start + together)
        kept = (NULL, NULL) if ring.k_scale is not None else (ring.k[some], ring.v[some])
        parts = q[some], *kept, k[some], v[some], ring.count[some], active[some]
        _qkv(parts, x[some], w, ring.capacity, eps, theta, ops.device)
    if ring.k_scale is not None:
        attention.append(ring, k, v, active, device=ops.device)


def _qkv(
    parts: tuple[Any, ...], x: Any, w: QkvWeights, capacity: int, eps: float, theta: float, device: Device
) -> None:
    """parts : q, the ring's halves or NULL twice, k, v, count, active, of the lanes of x [B, T, C]"""
    lanes, items, columns = x.shape
    heads, (kept, width) = parts[0].shape[2], parts[3].shape[2:]
    plan = q4.plan(lanes * items, sum(len(one.tiles[0]) for one in (w.q, w.k, w.v)), columns, device=device)
    ticket = device.scratch("fused ticket", (1,), np.uint32)
    source = _normed(x.reshape(lanes * items, columns), w.gain, None, eps, plan, device)
    weights = (
        *w.q.tiles, _or_null(w.q_bias), *w.k.tiles, _or_null(w.k_bias), *w.v.tiles, _or_null(w.v_bias)
    )  # fmt: skip
    sizes = (np.int32(n) for n in (lanes, items, heads, kept, width, capacity))
    args = (*parts, ticket, *source, *weights, *sizes, rope.log2_step(theta, width), np.int32(columns))
    kernel = device.kernel("fused", f"qkv_{plan.capacity}")
    kernel(plan.grid, plan.block, (*args, plan.share), shared_mem=plan.shared)


def gate_up_silu(ops: Cuda, out: Any, x: Any, w: GateUpWeights, *, eps: float, h: Any, up: Any) -> None:
    """See `kernels.fused`."""
    rows, columns, outputs = math.prod(x.shape[:-1]), x.shape[-1], out.shape[-1]
    if not _fits(rows, w.gate, w.up):
        fused.gate_up_silu.__wrapped__(ops, out, x, w, eps=eps, h=h, up=up)  # type: ignore[attr-defined]
        return
    device, flat = ops.device, x.reshape(rows, columns)
    together = 2 if rows <= GATE_UP_ROWS else 1
    plan = q4.plan(rows, len(w.gate.tiles[0]), columns, matrices=together, device=device)
    source = _normed(flat, w.gain, w.scale, eps, plan, device)
    sizes = tuple(np.int32(n) for n in (rows, columns, outputs))
    if together == 2:
        kernel = device.kernel("fused", f"gate_up_{plan.capacity}")
        args = (out, *_scaled(source, w.scale), *w.gate.tiles, *w.up.tiles, *sizes, plan.share)
        kernel(plan.grid, plan.block, args, shared_mem=plan.shared)
        return
    product = device.kernel("linear", f"q4_product_{plan.capacity}")
    for part, weights in ((out, w.gate), (up, w.up)):
        args = (part, *source[-2:], *weights.tiles, NULL, *sizes, plan.share)
        product(plan.grid, plan.block, args, shared_mem=plan.shared)
    ops.silu_mul(out, out, up)


def linear_residual(ops: Cuda, x: Any, h: Any, w: Any, bias: Any | None = None, *, y: Any) -> None:
    """See `kernels.fused`."""
    rows, columns, outputs = math.prod(h.shape[:-1]), h.shape[-1], x.shape[-1]
    if not _fits(rows, w):
        fused.linear_residual.__wrapped__(ops, x, h, w, bias, y=y)  # type: ignore[attr-defined]
        return
    device, flat = ops.device, h.reshape(rows, columns)
    plan = q4.plan(rows, len(w.tiles[0]), columns, in_parts=True, device=device)
    sizes = tuple(np.int32(n) for n in (rows, columns, outputs))
    if plan.capacity == q4.STAGED_ROWS:
        args = (x, flat, *w.tiles, _or_null(bias), *sizes, plan.share)
        device.kernel("fused", "residual_4")(plan.grid, plan.block, args, shared_mem=plan.shared)
        return
    product = device.scratch("fused product", (plan.parts * rows, outputs), np.float32)
    args = (product, *q4.split(flat, plan.capacity, device=device), *w.tiles, NULL, *sizes, plan.share)
    kernel = device.kernel("linear", f"q4_product_{plan.capacity}")
    kernel(plan.grid, plan.block, args, shared_mem=plan.shared)
    size = rows * outputs
    args = (x, product, _or_null(bias), np.int32(plan.parts), np.int32(size), np.int32(outputs))
    device.kernel("fused", "add_parts")((-(-size // 256),), (256,), args)


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
    best = device.scratch("fused best", (rows,), np.uint64)
    guard = np.int32(blank), np.int32(patience), np.float64(slope), np.float64(limit)
    sizes = (np.int32(n) for n in (rows, columns, table.shape[0]))
    device.kernel("fused", f"head_{plan.capacity}")(plan.grid, plan.block, (
        picked, *_normed(x, gain, None, eps, plan, device), *table.tiles, run, *guard, active, best, ticket,
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
    """x, gain, eps, terms and unscale of a kernel; the last two where blocks do not split x themselves."""
    rows, columns = x.shape
    if plan.capacity == q4.STAGED_ROWS:
        return x, gain, np.float32(eps), NULL, NULL
    terms, unscale = q4.split_room(rows, columns, plan.capacity, device=device)
    device.kernel("fused", "norm_split")((rows,), (q4.SPLIT_THREADS,), (
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
