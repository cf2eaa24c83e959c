"""Matrix products: dense weights at once, stored ones by tiles of rows, so that memory stays bounded."""

from __future__ import annotations

import numpy as np

from kernels import quant
from kernels.errors import ShapeError
from kernels.tensor import QuantTensor

TILE_WEIGHTS = 1 << 17  # half a MiB of f32: the product finds it still in an L2 cache

# OpenBLAS has kernels for small products that skip its packing. Weights reach it in pieces that suit them:
# 2 to 4 times faster for 2 to 8 rows, and no slower where a BLAS has none.
FEW_ROWS = 8
FEW_OUTPUTS = 1024
FEW_PRODUCTS = 1_000_000


def linear(
    out: np.ndarray, x: np.ndarray, w: np.ndarray | QuantTensor, bias: np.ndarray | None = None
) -> None:
    """out [..., N] = x [..., M] @ w [N, M]^T (+ bias [N])."""
    rows, columns = w.shape
    if x.shape[-1] != columns or out.shape[-1] != rows or out.shape[:-1] != x.shape[:-1]:
        raise ShapeError(f"linear: x {x.shape} times weight {w.shape} does not fit out {out.shape}")
    assert out.flags.c_contiguous, "linear writes through a flat view of out"
    flat_x, flat_out = x.reshape(-1, columns), out.reshape(-1, rows)
    if isinstance(w, QuantTensor):
        _stored_product(flat_out, flat_x, w)
    else:
        product(flat_out, flat_x, w)
    if bias is not None:
        np.add(out, bias, out=out)


def embed(out: np.ndarray, ids: np.ndarray, table: np.ndarray | QuantTensor) -> None:
    """out [..., M] = rows `ids` [...] i32 of table [N, M]; only those rows are widened."""
    rows, columns = table.shape
    if out.shape != (*ids.shape, columns):
        raise ShapeError(f"embed: ids {ids.shape} of table {table.shape} do not fit out {out.shape}")
    if ids.size and not (ids.min() >= 0 and ids.max() < rows):
        raise ShapeError(f"embed: ids run from {ids.min()} to {ids.max()}, but the table has {rows} rows")
    if isinstance(table, QuantTensor):
        stored = table.tiles[0][ids.reshape(-1)]
        quant.unpack(stored, table.kind, (ids.size, columns), out=out.reshape(ids.size, columns))
    else:
        out[...] = table[ids]


def product(out: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    """out [R, N] = x [R, M] @ w [N, M]^T, for the few rows a live step has as well as for many.

    The weight stands on the left: `x @ w.T` took twice the time.
    """
    if len(x) == 1:
        np.dot(w, x[0], out=out[0])
        return
    height = len(w)
    if len(x) <= FEW_ROWS:
        height = max(1, min(FEW_OUTPUTS // len(x), FEW_PRODUCTS // x.size))
    for start in range(0, len(w), height):
        out[:, start : start + height] = (w[start : start + height] @ x.T).T


def _stored_product(out: np.ndarray, x: np.ndarray, w: QuantTensor) -> None:
    """The same over a stored weight, tile by tile."""
    rows, columns = w.shape
    height = max(1, TILE_WEIGHTS // columns)
    tile = np.empty((min(height, rows), columns), np.float32)
    for start in range(0, rows, height):
        stored = w.tiles[0][start : start + height]
        dense = quant.unpack(stored, w.kind, (len(stored), columns), out=tile[: len(stored)])
        product(out[:, start : start + height], x, dense)
