"""Rotary positions. A table of turns serves every rotation of a step that stands at the same position."""

from __future__ import annotations

from kernels.cpu.native.floats import turn
from kernels.cpu.native.words import exact, f32, f64, i32, i64, set_f32, set_i64


@exact
def turns(r, part):
    """The table for lane `part`, unless it already holds that position.

    record   position, rates [D / 2] f64, table: [B] i64 what it holds (position + 1), then [B, T, D] f32 of
             cosine and sine in turn; lanes, items, width
    """
    position, rates, table = i64(r, 0), i64(r, 1), i64(r, 2)
    lanes, items, width = i64(r, 3), i64(r, 4), i64(r, 5)
    first = i32(position, part)
    if i64(table, part) == first + 1:
        return
    to = table + 8 * lanes + part * items * width * 4
    for item in range(items):
        for i in range(width // 2):
            cosine, sine = turn(float(first + item) * f64(rates, i))
            set_f32(to, item * width + 2 * i, cosine)
            set_f32(to, item * width + 2 * i + 1, sine)
    set_i64(table, part, first + 1)


@exact
def rope(r, part):
    """All heads of one item of one lane.

    record   x, table, lanes, heads, width
    """
    x, table, lanes, heads, width = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    at = table + 8 * lanes + part * width * 4
    for head in range(heads):
        to = x + (part * heads + head) * width * 4
        for i in range(0, width, 2):
            a, b, cosine, sine = f32(to, i), f32(to, i + 1), f32(at, i), f32(at, i + 1)
            set_f32(to, i, a * cosine - b * sine)
            set_f32(to, i + 1, a * sine + b * cosine)
