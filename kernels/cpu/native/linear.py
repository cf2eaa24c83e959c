"""Weights laid out for products.py, and rows of them read back.

A group of `height` rows interleaves its blocks: [columns / 32] x (f16 scales [height], quads [n, height, 4]).
"""

from __future__ import annotations

from kernels.cpu.layout import BLOCK
from kernels.cpu.native.floats import f16
from kernels.cpu.native.words import (
    as_f32,
    copy_bytes,
    exact,
    i8,
    i32,
    i64,
    set_f32,
    set_i32,
    set_u16,
    u8,
    u16,
    u32,
)


@exact
def interleave(r, part):
    """One group of stored rows, as in their file, to its place; rows past the end become zeros.

    record   stored, out, rows, blocks, quads, height
    """
    stored, out, rows, blocks = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3)
    quads, height = i64(r, 4), i64(r, 5)
    size = 2 + 4 * quads
    for lane in range(height):
        row = part * height + lane
        source = stored + row * blocks * size
        for block in range(blocks):
            to = out + (part * blocks + block) * size * height
            if row < rows:
                set_u16(to, lane, u16(source + block * size, 0))
                for quad in range(quads):
                    word = u32(source + block * size + 2, quad)
                    set_i32(to + 2 * height, quad * height + lane, word)
            else:
                set_u16(to, lane, 0)
                for quad in range(quads):
                    set_i32(to + 2 * height, quad * height + lane, 0)


@exact
def embed_blocks(r, part):
    """One row of an interleaved table, as f32; the nearest there is to an id outside it.

    record   out, ids, table, rows, columns, quads, height
    """
    out, ids, table, rows, columns = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    quads, height = i64(r, 5), i64(r, 6)
    row = min(max(i32(ids, part), 0), rows - 1)
    blocks, lane = columns // BLOCK, row % height
    size = (2 + 4 * quads) * height
    for block in range(blocks):
        at = table + (row // height * blocks + block) * size
        scale = f16(at, lane)
        to = out + (part * columns + block * BLOCK) * 4
        for quad in range(quads):
            here = at + 2 * height + (quad * height + lane) * 4
            for byte in range(4):
                column = 4 * quad + byte
                if quads == 4:
                    set_f32(to, column, scale * ((u8(here, byte) & 15) - 8))
                    set_f32(to, column + 16, scale * ((u8(here, byte) >> 4) - 8))
                else:
                    set_f32(to, column, scale * i8(here, byte))


@exact
def embed_dense(r, part):
    """One row of a dense table, as f32; the nearest there is to an id outside it.

    record   out, ids, table, rows, columns, kind: 0 f32, 1 f16, 2 bf16
    """
    out, ids, table, rows, columns, kind = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4), i64(r, 5)
    row = min(max(i32(ids, part), 0), rows - 1)
    to = out + part * columns * 4
    if kind == 0:
        copy_bytes(to, table + row * columns * 4, columns * 4)
    elif kind == 1:
        for i in range(columns):
            set_f32(to, i, f16(table, row * columns + i))
    else:
        for i in range(columns):
            set_f32(to, i, as_f32(u16(table, row * columns + i) << 16))


@exact
def copy(r, part):
    """record   to, source, bytes of a row, stride of the source's rows, bytes in all."""
    to, source, row, stride, size = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    copy_bytes(to + part * row, source + part * stride, min(row, size - part * row))
