"""Matrix products, each by the kernel that suits its weights and its number of rows.

    rows of x     Q4_0 in fragments      Q4_0 by rows       Q8_0               f16, bf16          f32
    1 to 4        tensor cores, exact    dp4a, two terms    f32 FMAs           f32 FMAs           f32 FMAs
    5 to 8        tensor cores, exact    f16, cuBLAS        f32 FMAs           f32 FMAs           f32 FMAs
    9 to 64       tensor cores, exact    f16, cuBLAS        f16, cuBLAS        cuBLAS, terms      cuBLAS
    65 to 128     the same in two        f16, cuBLAS        f16, cuBLAS        cuBLAS, one term   cuBLAS
    more          f16, cuBLAS            f16, cuBLAS        f16, cuBLAS        cuBLAS, one term   cuBLAS

"Exact", "FMAs" and "terms" agree with float64 to 1e-6, "two terms" to 5e-5, "f16" and one term of f16 to
5e-4, and one term of bf16 to 2.5e-3, which is its precision. cuBLAS has f32 sums throughout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda import q4
from kernels.cuda.device import NULL, Device
from kernels.cuda.weights import adopt, dequantise, in_fragments, part
from kernels.errors import ShapeError
from kernels.tensor import QuantTensor

__all__ = ["adopt", "embed", "linear"]  # `adopt` is the backend's way in to the layouts

FEW_ROWS = 8  # from here on a product is worth the launches around cuBLAS; not yet measured
EXACT_ROWS = 64  # up to which activations reach cuBLAS as several terms: the weights are most of the bytes
FRAGMENT_ROWS = 128  # where f16 weights and cuBLAS take over: expected between 128 and 192, not yet measured
DP4A_ROWS = 4
TERMS = {"f16": 2, "bf16": 3}  # halves of an f32 that hold all its bits
WIDENED_WEIGHTS = 1 << 24  # at a time: 32 MiB of f16, which a large GPU's cache keeps for the product

ROWS = (1, 2, 4, 8)  # what gemv kernels are made for
GEMV_THREADS = 128
DP4A_WARPS, DP4A_OUTPUTS = 8, 2
DP4A_BLOCKS = 4  # on a processor: every block quantises x for itself
EMBED_THREADS = 512  # of eight columns each: a row at once
TERMS_THREADS = FINISH_THREADS = 256


def linear(out: Any, x: Any, w: Any, bias: Any | None = None, *, device: Device) -> None:
    """out [..., N] = x [..., M] @ w [N, M]^T (+ bias [N])."""
    rows, columns = w.shape
    if x.shape[-1] != columns or out.shape[-1] != rows or out.shape[:-1] != x.shape[:-1]:
        raise ShapeError(f"linear: x {x.shape} times weight {w.shape} does not fit out {out.shape}")
    if bias is not None and bias.shape != (rows,):
        raise ShapeError(f"linear: weight {w.shape} gives {rows} values, but bias is {bias.shape}")
    items = math.prod(x.shape[:-1])
    if not items or not rows:
        return
    flat_out, flat_x = out.reshape(items, rows), x.reshape(items, columns)
    bias = NULL if bias is None else bias
    kind = w.kind if isinstance(w, QuantTensor) else "f32"
    if kind == "q4_0" and in_fragments(w) and items <= FRAGMENT_ROWS:
        for start in range(0, items, q4.MOST_ROWS):
            some = slice(start, start + q4.MOST_ROWS)
            _fragments(flat_out[some], flat_x[some], w, bias, device)
    elif kind == "q4_0" and not in_fragments(w) and _dp4a_fits(items, columns, device):
        _dp4a(flat_out, flat_x, w, bias, device)
    elif kind != "q4_0" and items <= FEW_ROWS:
        _gemv(flat_out, flat_x, w, kind, bias, device)
    elif kind in ("q4_0", "q8_0"):
        _widened(flat_out, flat_x, w, bias, device)
    else:
        _dense(flat_out, flat_x, w, kind, bias, device)


def embed(out: Any, ids: Any, table: Any, *, device: Device) -> None:
    """out [..., M] = rows `ids` [...] i32 of table [N, M].

    Ids outside the table give its first or its last row: they are on the device, where nobody looks at them.
    """
    rows, columns = table.shape
    if out.shape != (*ids.shape, columns):
        raise ShapeError(f"embed: ids {ids.shape} of table {table.shape} do not fit out {out.shape}")
    count = math.prod(ids.shape)
    if not count:
        return
    if not rows:
        raise ShapeError("embed: the table has no rows")
    name = table.kind if isinstance(table, QuantTensor) else "f32"
    planes = table.tiles if isinstance(table, QuantTensor) else (table,)
    if name == "q4_0":
        name = "fragment" if in_fragments(table) else "rows"
    args = (out, ids, *planes, np.int32(rows), np.int32(columns))
    device.kernel("weights", f"embed_{name}")((count,), (EMBED_THREADS,), args)


def _fragments(out: Any, x: Any, w: QuantTensor, bias: Any, device: Device) -> None:
    """Up to 64 rows, by q4.cuh."""
    (items, columns), outputs = x.shape, w.shape[0]
    plan = q4.plan(items, len(w.tiles[0]), columns, device=device, in_parts=True)
    sizes = np.int32(items), np.int32(columns), np.int32(outputs), plan.share
    name, source, product, some_bias = "q4_staged", [x], out, bias
    if plan.capacity > q4.STAGED_ROWS:
        name, source = f"q4_product_{plan.capacity}", [*q4.split(x, plan.capacity, device=device)]
    if plan.parts > 1:
        product, some_bias = device.scratch("linear.product", (plan.parts * items, outputs), np.float32), NULL
    args = (product, *source, *w.tiles, some_bias, *sizes)
    device.kernel("linear", name)(plan.grid, plan.block, args, shared_mem=plan.shared)
    if plan.parts > 1:
        _finish(out, product, NULL, bias, 0, plan.parts, device)


def _dp4a_fits(items: int, columns: int, device: Device) -> bool:
    return items <= DP4A_ROWS and _dp4a_bytes(items, columns) <= device.shared_bytes


def _dp4a_bytes(items: int, columns: int) -> int:
    """Two bytes a column, and two floats a block of 32."""
    return items * (2 * columns + 8 * (columns // 32))


def _dp4a(out: Any, x: Any, w: QuantTensor, bias: Any, device: Device) -> None:
    (items, columns), outputs = x.shape, w.shape[0]
    blocks = min(-(-outputs // (DP4A_WARPS * DP4A_OUTPUTS)), DP4A_BLOCKS * device.processors)
    args = (out, x, *w.tiles, bias, np.int32(outputs), np.int32(columns))
    kernel = device.kernel("linear", f"dp4a_{items}")
    kernel((blocks,), (32 * DP4A_WARPS,), args, shared_mem=_dp4a_bytes(items, columns))


def _gemv(out: Any, x: Any, w: Any, kind: str, bias: Any, device: Device) -> None:
    (items, columns), outputs = x.shape, w.shape[0]
    rows = next(most for most in ROWS if items <= most)
    together = 2 if kind == "q8_0" or rows > 2 else 4  # outputs of a warp, as in linear.cu
    blocks = -(-outputs // (GEMV_THREADS // 32 * together))
    planes = w.tiles if isinstance(w, QuantTensor) else (w,)
    args = (out, x, *planes, bias, np.int32(items), np.int32(outputs), np.int32(columns))
    device.kernel("linear", f"gemv_{kind}_{rows}")((blocks,), (GEMV_THREADS,), args)


def _widened(out: Any, x: Any, w: QuantTensor, bias: Any, device: Device) -> None:
    """Weights to f16, some rows of them at a time, and x to f16, row by row scaled."""
    items, (rows, columns) = len(x), w.shape
    height = min(rows, max(q4.TILE, WIDENED_WEIGHTS // columns // q4.TILE * q4.TILE))
    halves, unscale = _terms(x, "f16", 1, device)
    wide = device.scratch("linear.wide", (height, columns), np.float16)
    for start in range(0, rows, height):
        some = part(w, start, min(start + height, rows))
        count = some.shape[0]
        product = out if count == rows else device.scratch("linear.product", (items, count), np.float32)
        dequantise(wide[:count], some, device=device)
        device.gemm(product, halves, wide[:count], "f16")
        _finish(out, product, unscale, bias, start, 1, device)


def _dense(out: Any, x: Any, w: Any, kind: str, bias: Any, device: Device) -> None:
    items, (rows, _) = len(x), w.shape
    if kind == "f32":
        device.gemm(out, x, w, "f32")
        if bias is not NULL:
            _finish(out, out, NULL, bias, 0, 1, device)
        return
    terms = TERMS[kind] if items <= EXACT_ROWS else 1
    halves, unscale = _terms(x, kind, terms, device)
    product = out if terms == 1 else device.scratch("linear.product", (terms * items, rows), np.float32)
    device.gemm(product, halves, w.tiles[0], kind)
    if product is not out or unscale is not NULL or bias is not NULL:
        _finish(out, product, unscale, bias, 0, terms, device)


def _terms(x: Any, kind: str, terms: int, device: Device) -> tuple[Any, Any]:
    """x [R, M] as the sum of `terms` f16 or bf16 [terms * R, M], and what undoes their scale, or NULL."""
    items, columns = x.shape
    stored = np.float16 if kind == "f16" else np.uint16
    halves = device.scratch("linear.terms", (terms * items, columns), stored)
    unscale = device.scratch("linear.unscale", (items,), np.float32) if kind == "f16" else NULL
    scaled = (unscale,) if kind == "f16" else ()
    args = (halves, *scaled, x, np.int32(columns), np.int32(terms))
    device.kernel("linear", f"terms_{kind}")((items,), (TERMS_THREADS,), args)
    return halves, unscale


def _finish(
    out: Any, product: Any, unscale: Any, bias: Any, offset: int, terms: int, device: Device
) -> None:
    """out [R, offset..] = the terms of product [terms * R, n] added up, unscaled, biased."""
    items, outputs = out.shape
    sizes = np.int32(product.shape[1]), np.int32(outputs), np.int32(offset), np.int32(terms)
    grid = items, -(-product.shape[1] // FINISH_THREADS)
    device.kernel("linear", "finish")(grid, (FINISH_THREADS,), (out, product, unscale, bias, *sizes))
