"""Rings of keys and values, and softmax over them in tiles of SPAN positions, each read once.

A tile of query rows (items and heads that share a key head) keeps its running maximum, its sum, and its mix
in `out`; a later tile with a larger score scales all of it down. Slots never written are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy import float32

from kernels.cpu.layout import DENSE_HEIGHT, LINE_BYTES
from kernels.cpu.native.emitter import FLOAT, I64, Emitter, Slot, Value
from kernels.cpu.native.floats import exp, half_writer
from kernels.cpu.native.products import DENSE_BYTES, dense_tile, load_dense
from kernels.cpu.native.sets import InstructionSet
from kernels.cpu.native.words import (
    as_f32,
    copy_bytes,
    exact,
    f32,
    i32,
    i64,
    intrinsic,
    largest_of_64,
    loops,
    room,
    set_f32,
    set_i32,
    set_i64,
    types,
)

SPAN = 256  # positions in a tile
BLOCK = 64  # of which scores are weighed at once
MOST = 8  # query rows in a tile, at most
LOWEST = float32(-float("inf"))
ZERO, ONE = float32(0), float32(1)

score_room, address_room, number_room = room(4 * SPAN * MOST), room(8 * MOST), room(4 * MOST)


def append_kernel(kind: str, hardware_halves: bool) -> Any:
    """New keys and values of one lane, behind its newest position.

    record   ring k, ring v, count, k, v, active, items, heads, capacity, width
    """
    size = DENSE_BYTES[kind]
    set_half = half_writer(hardware_halves)

    @exact
    def put(to, source, width):
        if size == 4:
            copy_bytes(to, source, 4 * width)
        else:
            for i in range(width):
                set_half(to, i, f32(source, i))

    @exact
    def append(r, part):
        ring_k, ring_v, counts, k, v = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
        items, heads, capacity, width = i64(r, 6), i64(r, 7), i64(r, 8), i64(r, 9)
        if i32(i64(r, 5), part) == 0:
            return
        count = i32(counts, part)
        for item in range(items):
            slot = (count + item) % capacity
            for head in range(heads):
                to = ((part * heads + head) * capacity + slot) * width * size
                source = ((part * items + item) * heads + head) * width * 4
                put(ring_k + to, k + source, width)
                put(ring_v + to, v + source, width)
        set_i32(counts, part, count + items)

    return append


def attend_kernel(kind: str, isa: InstructionSet) -> Any:
    """All items of one lane under one key head.

    record   out, q, ring k, ring v, count, items, heads, key heads, capacity, width, window, 1 / sqrt(D) as
             f32 bits
    """
    size, tile = DENSE_BYTES[kind], isa.dense_tile
    score_many, score_one = _scores(kind, isa, tile), _scores(kind, isa, 1)
    mix_many, mix_one = _mix(kind, isa, tile), _mix(kind, isa, 1)

    @exact
    def attend(r, part):
        rows = i64(r, 5) * (i64(r, 6) // i64(r, 7))  # of queries that read this key head
        row = 0
        while row < rows:
            taken = tile if row + tile <= rows else 1
            attend_rows(r, part // i64(r, 7), part % i64(r, 7), row, taken)
            row += taken

    @exact
    def attend_rows(r, lane, group, row, rows):
        items, groups, capacity, width = i64(r, 5), i64(r, 7), i64(r, 8), i64(r, 9)
        window, factor, shared = i64(r, 10), as_f32(i64(r, 11)), i64(r, 6) // i64(r, 7)
        first = i32(i64(r, 4), lane) - items + row // shared  # position of the first row
        last = first - row // shared + (row + rows - 1) // shared
        ring = (lane * groups + group) * capacity * width * size
        scores, queries, outs = score_room(), address_room(), address_room()
        tops, sums = number_room(), number_room()
        for j in range(rows):
            head = group * shared + (row + j) % shared
            at = ((lane * items + (row + j) // shared) * groups * shared + head) * width * 4
            set_i64(queries, j, i64(r, 1) + at)
            set_i64(outs, j, i64(r, 0) + at)
            begin(i64(r, 0) + at, width, tops + j * 4, sums + j * 4)
        position = max(0, first - window + 1)
        while position <= last:
            slot = position % capacity
            count = min(SPAN, last + 1 - position, capacity - slot)
            here, after = ring + slot * width * size, ring + (slot + count) * width * size
            if rows == tile:
                score_many(queries, i64(r, 2) + here, count, width, scores, i64(r, 3) + here)
            else:
                score_one(queries, i64(r, 2) + here, count, width, scores, i64(r, 3) + here)
            for j in range(rows):
                own = first - row // shared + (row + j) // shared
                behind = hide(scores + j * SPAN * 4, position, count, own - window + 1, own)
                weigh(scores + j * SPAN * 4, behind, i64(outs, j), width, tops + j * 4, sums + j * 4, factor)
            if rows == tile:
                mix_many(outs, scores, i64(r, 3) + here, count, width, i64(r, 2) + after)
            else:
                mix_one(outs, scores, i64(r, 3) + here, count, width, i64(r, 2) + after)
            position += count
        for j in range(rows):
            end(i64(outs, j), width, sums + j * 4)

    return attend


@exact
def begin(out, width, top, total):
    """A row that has seen nothing; `top` and `total` are addresses."""
    for i in range(width):
        set_f32(out, i, ZERO)
    set_f32(top, 0, LOWEST)
    set_f32(total, 0, ZERO)


@exact
def end(out, width, total):
    """A row whose weights are to sum up to one; one that has seen nothing stays zero."""
    if f32(total, 0) > ZERO:
        scale(out, width, ONE / f32(total, 0))


@exact
def hide(scores, position, count, first, last):
    """-inf outside [first, last], and behind the `count` positions up to a whole BLOCK; gives that end."""
    behind = -(-count // BLOCK) * BLOCK
    for i in range(count, behind):
        set_f32(scores, i, LOWEST)
    for i in range(position, min(first, position + count)):
        set_f32(scores, i - position, LOWEST)
    for i in range(max(last + 1, position), position + count):
        set_f32(scores, i - position, LOWEST)
    return behind


@exact
def weigh(scores, count, out, width, top, total, factor):
    """Scores of a tile become weights against the largest score so far."""
    before = f32(top, 0)
    largest = before
    for i in range(0, count, BLOCK):
        largest = max(largest, largest_of_64(scores + i * 4))
    if largest == LOWEST:
        for i in range(count):
            set_f32(scores, i, ZERO)
        return
    if largest > before:
        smaller = exp((before - largest) * factor)
        scale(out, width, smaller)
        set_f32(top, 0, largest)
        set_f32(total, 0, f32(total, 0) * smaller)
    set_f32(total, 0, f32(total, 0) + exponentials(scores, count, largest, factor))


@loops
def exponentials(scores, count, top, factor):
    """exp((score - top) * factor) in place of each score, and their sum."""
    total = ZERO
    for i in range(count):
        weight = exp((f32(scores, i) - top) * factor)
        set_f32(scores, i, weight)
        total += weight
    return total


@exact
def scale(row, width, factor):
    for i in range(width):
        set_f32(row, i, f32(row, i) * factor)


def _scores(kind: str, isa: InstructionSet, rows: int) -> Any:
    """(queries, keys, count, width, scores, values): scores [rows, SPAN] of `count` positions from `keys` on.

    Rounded up to whole groups of four: what stands behind the last one is its copy. Meanwhile `values` are
    brought nearer.
    """

    def emit(
        e: Emitter, queries: Value, keys: Value, count: Value, width: Value, scores: Value, values: Value
    ) -> None:
        xs = [e.load(queries + 8 * j, I64) for j in range(rows)]
        stride, last = width * DENSE_BYTES[kind], count - 1
        with e.counting((count + (DENSE_HEIGHT - 1)) // DENSE_HEIGHT) as turn:
            positions = [turn * DENSE_HEIGHT + i for i in range(DENSE_HEIGHT)]
            addresses = [keys + (p < last).where(p, last) * stride for p in positions]
            with e.counting(stride * DENSE_HEIGHT // LINE_BYTES) as line:
                e.prefetch(values + turn * DENSE_HEIGHT * stride + line * LINE_BYTES)
            for j, four in enumerate(dense_tile(e, kind, isa, addresses, xs, width)):
                e.store(four, scores + turn * (4 * DENSE_HEIGHT) + 4 * SPAN * j)

    return _six(emit)


def _mix(kind: str, isa: InstructionSet, rows: int) -> Any:
    """(outs, weights, values, count, width, keys): out row j += sum of weights [j, i] times value i.

    `keys`, those of the next tile, are brought nearer meanwhile.
    """

    def emit(
        e: Emitter, outs: Value, weights: Value, values: Value, count: Value, width: Value, keys: Value
    ) -> None:
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

    return _six(emit)


def _six(emit: Callable[..., None]) -> Any:
    """An emission over six words, to be called from a kernel."""

    @intrinsic
    def inner(context, a, b, c, d, e, f):
        def generate(context, builder, signature, values):
            emitter = Emitter(builder)
            emit(emitter, *(emitter.value(value) for value in values))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return inner
