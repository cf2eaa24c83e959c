"""Matrix products. Block kinds are interleaved at `adopt`, dense ones kept as they are: native/products.py.

Activations meet blocks as bytes with a scale per 32, as in every other program for these files; or as f32
where the backend is told so.
"""

from __future__ import annotations

import math
from typing import Any

from kernels import quant
from kernels.cpu.layout import BLOCK, DENSE, DENSE_HEIGHT, QUADS, X_BYTES
from kernels.cpu.memory import stored
from kernels.cpu.plan import I32, Steps
from kernels.errors import ShapeError

PARTS = 16  # a product is cut into about so many, while each is worth taking by itself:
LEAST_BYTES, MOST_BYTES = 1 << 15, 1 << 18  # of weights, for one row of x: about 1 us and 8 us
ITEMS_PER_PASS = 4  # rows of x that cost little more than one


def linear(out: Any, x: Any, w: Any, bias: Any | None = None, *, steps: Steps) -> None:
    """out [..., N] = x [..., M] @ w [N, M]^T (+ bias [N])."""
    product(out, activations(x, (w,), steps), w, bias, steps=steps)


def embed(out: Any, ids: Any, table: Any, *, steps: Steps) -> None:
    """out [..., M] = rows `ids` [...] i32 of table [N, M]; of an id outside it, the nearest row."""
    rows, columns = table.shape
    if out.shape != (*ids.shape, columns) or not rows:
        raise ShapeError(f"embed: ids {ids.shape} of table {table.shape} do not fit out {out.shape}")
    kind, memory = stored(table)
    given = steps.at(out), steps.at(ids, I32), steps.at(memory, memory.dtype), rows, columns
    if kind in QUADS:
        steps.add("embed_blocks", ids.size, *given, QUADS[kind], steps.library.height)
    else:
        steps.add("embed_dense", ids.size, *given, DENSE[kind])


class Activations:
    """Rows of x [..., M] as products take them: by kind of weight, the address of what stands for them."""

    __slots__ = ("columns", "forms", "items", "lead")

    def __init__(self, lead: tuple[int, ...], columns: int, forms: dict[str, int]):
        self.lead, self.columns, self.items, self.forms = lead, columns, math.prod(lead), forms


def activations(x: Any, weights: tuple[Any, ...], steps: Steps) -> Activations:
    """x [..., M] made ready, once, for products with all of `weights`."""
    *lead, columns = x.shape
    items, address = math.prod(lead), steps.at(x)
    forms: dict[str, int] = {}
    by_seed: dict[int, int] = {}
    for w in weights:
        kind, _ = stored(w)
        if w.shape[1] != columns:
            raise ShapeError(f"linear: x {x.shape} does not fit a weight {w.shape}")
        if kind in DENSE or steps.exact:
            forms[kind] = address
            continue
        factor = steps.library.seeds[kind]
        if factor not in by_seed:
            by_seed[factor] = _quantised(address, items, columns, factor, steps)
        forms[kind] = by_seed[factor]
    return Activations(tuple(lead), columns, forms)


def product(
    out: Any, x: Activations, w: Any, bias: Any | None = None, added: Any | None = None, *, steps: Steps
) -> None:
    """out = x @ w^T (+ bias) (+ added, which has the shape of out, and may be out)."""
    rows, columns = w.shape
    if columns != x.columns or out.shape != (*x.lead, rows):
        shape = (*x.lead, x.columns)
        raise ShapeError(f"linear: x {shape} times weight {w.shape} does not fit out {out.shape}")
    if bias is not None and bias.shape != (rows,):
        raise ShapeError(f"linear: bias {bias.shape} does not fit weight {w.shape}")
    if added is not None and added.shape != out.shape:
        raise ShapeError(f"linear: {added.shape} cannot be added to out {out.shape}")
    kind, memory = stored(w)
    dense = kind in DENSE
    height = DENSE_HEIGHT if dense else steps.library.height
    groups = -(-rows // height)
    passes = -(-x.items // ITEMS_PER_PASS)
    cost = quant.nbytes(kind, w.shape) * passes
    size = min(max(cost // PARTS, LEAST_BYTES), MOST_BYTES)
    each = max(1, size * groups // max(1, cost))
    kernel = f"dense_{kind}" if dense else f"{kind}_{'f32' if steps.exact else 'int8'}"
    steps.add(
        kernel, -(-groups // each) if x.items else 0, steps.at(memory, memory.dtype), x.forms[kind],
        steps.at(out), steps.at(bias), steps.at(added), x.items, rows, columns, each, cost=cost,
    )  # fmt: skip


def _quantised(x: int, items: int, columns: int, factor: int, steps: Steps) -> int:
    """Adds the record that makes bytes of x; their address."""
    place = steps.room(f"bytes {factor}", items * columns // BLOCK * X_BYTES)
    steps.add("quantise", items, x, place, items, columns, factor, cost=4 * items * columns)
    return place
