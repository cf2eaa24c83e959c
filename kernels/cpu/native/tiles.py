"""The two inner loops of attention, emitted for one instruction set: scores of a tile, and its mix of values.

    scores_f16_4, mix_f16_4   for f16 keys and values, and four query rows at a time
"""

from __future__ import annotations

from kernels.cpu.layout import DENSE_HEIGHT, LINE_BYTES, SPAN
from kernels.cpu.native.emitter import FLOAT, I64, Emitter, Slot, Value
from kernels.cpu.native.products import DENSE_BYTES, dense_tile, load_dense
from kernels.cpu.native.sets import InstructionSet


def emit_scores(
    e: Emitter, queries: Value, keys: Value, count: Value, width: Value, scores: Value, values: Value, *,
    kind: str, isa: InstructionSet, rows: int,
) -> None:
    """scores [rows, SPAN] of `count` positions from `keys` on, for rows of q at the addresses `queries`.

    Rounded up to whole groups of four: what stands behind the last one is its copy. Meanwhile `values` are
    brought nearer.
    """
    xs = [e.load(queries + 8 * j, I64) for j in range(rows)]
    stride, last = width * DENSE_BYTES[kind], count - 1
    with e.counting((count + (DENSE_HEIGHT - 1)) // DENSE_HEIGHT) as turn:
        positions = [turn * DENSE_HEIGHT + i for i in range(DENSE_HEIGHT)]
        addresses = [keys + (p < last).where(p, last) * stride for p in positions]
        with e.counting(stride * DENSE_HEIGHT // LINE_BYTES) as line:
            e.prefetch(values + turn * DENSE_HEIGHT * stride + line * LINE_BYTES)
        for j, four in enumerate(dense_tile(e, kind, isa, addresses, xs, width)):
            e.store(four, scores + turn * (4 * DENSE_HEIGHT) + 4 * SPAN * j)


def emit_mix(
    e: Emitter, outs: Value, values: Value, count: Value, width: Value, weights: Value, keys: Value, *,
    kind: str, isa: InstructionSet, rows: int,
) -> None:
    """The row at address outs[j] += sum of weights [j, SPAN] times values, `count` of them.

    Meanwhile `keys`, those of the next tile, are brought nearer.
    """
    to = [e.load(outs + 8 * j, I64) for j in range(rows)]
    stride, done = width * DENSE_BYTES[kind], e.constant(0, I64)
    for vectors, lanes in ((16 // max(rows, 4), isa.lanes), (1, isa.lanes), (1, 1)):
        step = vectors * lanes
        turns = (width - done) // step
        with e.counting(turns) as turn:
            first = done + turn * step
            columns = [first + i * lanes for i in range(vectors)]
            totals = [[Slot(e.load(row + c * 4, FLOAT, lanes)) for c in columns] for row in to]
            with e.counting(count) as i:
                for ahead in range(0, step * DENSE_BYTES[kind], LINE_BYTES):
                    e.prefetch(keys + i * stride + first * DENSE_BYTES[kind] + ahead)
                value = [load_dense(e, kind, isa, values + i * stride, c, lanes) for c in columns]
                for j, row in enumerate(totals):
                    weight = e.load(weights + i * 4 + 4 * SPAN * j, FLOAT)
                    factor = weight.splat(lanes) if lanes > 1 else weight
                    for total, v in zip(row, value, strict=True):
                        total.set(e.fma(factor, v, total.get()))
            for row, address in zip(totals, to, strict=True):
                for total, c in zip(row, columns, strict=True):
                    e.store(total.get(), address + c * 4)
        done = done + turns * step
