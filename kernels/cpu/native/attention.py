"""Rings of keys and values, and softmax over them in tiles of SPAN positions, each read once.

A tile of query rows (items and heads that share a key head) keeps its running maximum, its sum, and its mix
in `out`; a later tile with a larger score scales all of it down. Slots never written are never read.
"""

from __future__ import annotations

from numpy import float32

from kernels.cpu.layout import SPAN
from kernels.cpu.native.floats import exp, half_bits
from kernels.cpu.native.words import (
    as_f32,
    call_six,
    copy_bytes,
    exact,
    f32,
    i32,
    i64,
    largest_of_64,
    loops,
    room,
    set_f32,
    set_i32,
    set_i64,
    set_u16,
)

BLOCK = 64  # of which scores are weighed at once
MOST = 8  # query rows in a tile, at most
LOWEST = float32(-float("inf"))
ZERO, ONE = float32(0), float32(1)

score_room, address_room, number_room = room(4 * SPAN * MOST), room(8 * MOST), room(4 * MOST)


@exact
def append(r, part):
    """New keys and values of one lane, behind its newest position.

    record   ring k, ring v, count, k, v, active, items, heads, capacity, width, bytes of a number
    """
    ring_k, ring_v, counts, k, v = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    items, heads, capacity, width, size = i64(r, 6), i64(r, 7), i64(r, 8), i64(r, 9), i64(r, 10)
    if i32(i64(r, 5), part) == 0:
        return
    count = i32(counts, part)
    for item in range(items):
        slot = (count + item) % capacity
        for head in range(heads):
            to = ((part * heads + head) * capacity + slot) * width * size
            source = ((part * items + item) * heads + head) * width * 4
            put(ring_k + to, k + source, width, size)
            put(ring_v + to, v + source, width, size)
    set_i32(counts, part, count + items)


@exact
def attend(r, part):
    """All items of one lane under one key head.

    record   out, q, ring k, ring v, count, items, heads, key heads, capacity, width, window, 1 / sqrt(D) as
             f32 bits, inner: see `attend_rows`
    """
    rows, tile = i64(r, 5) * (i64(r, 6) // i64(r, 7)), i64(i64(r, 12), 1)
    row = 0
    while row < rows:
        taken = tile if row + tile <= rows else 1
        attend_rows(r, part // i64(r, 7), part % i64(r, 7), row, taken)
        row += taken


@exact
def attend_rows(r, lane, group, row, rows):
    """Some of the query rows that read a key head: all heads of an item, then those of the next.

    inner    bytes of a number, rows of a tile, then for tiles of so many rows and for single ones the code of
             `scores` and of `mix`: see tiles.py
    """
    items, groups, capacity, width = i64(r, 5), i64(r, 7), i64(r, 8), i64(r, 9)
    window, factor, shared, inner = i64(r, 10), as_f32(i64(r, 11)), i64(r, 6) // i64(r, 7), i64(r, 12)
    size, code = i64(inner, 0), inner + (16 if rows == i64(inner, 1) else 32)
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
        keys, values = i64(r, 2) + ring + slot * width * size, i64(r, 3) + ring + slot * width * size
        call_six(i64(code, 0), queries, keys, count, width, scores, values)
        for j in range(rows):
            own = first - row // shared + (row + j) // shared
            behind = hide(scores + j * SPAN * 4, position, count, own - window + 1, own)
            weigh(scores + j * SPAN * 4, behind, i64(outs, j), width, tops + j * 4, sums + j * 4, factor)
        call_six(i64(code, 1), outs, values, count, width, scores, keys + count * width * size)
        position += count
    for j in range(rows):
        end(i64(outs, j), width, sums + j * 4)


@exact
def put(to, source, width, size):
    """A row of f32, kept in `size` bytes each."""
    if size == 4:
        copy_bytes(to, source, 4 * width)
    else:
        for i in range(width):
            set_u16(to, i, half_bits(f32(source, i)))


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
