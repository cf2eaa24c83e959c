"""One value in, one value out. A part is PIECE values.

Results wait on the stack for the end of their block: LLVM does not vectorise a loop whose output may be its
input, and here it often is.
"""

from __future__ import annotations

from numpy import float32

from kernels.cpu.layout import PIECE
from kernels.cpu.native.floats import erf, expm1, silu
from kernels.cpu.native.words import copy_bytes, exact, f32, i64, room, set_f32

BLOCK = 256
ROOT_HALF, HALF, ONE, ZERO = float32(0.5**0.5), float32(0.5), float32(1), float32(0)
hold = room(4 * BLOCK)


@exact
def add(r, part):
    """record   out, x, y, count."""
    out, x, y, held = i64(r, 0), i64(r, 1), i64(r, 2), hold()
    stop = min((part + 1) * PIECE, i64(r, 3))
    for start in range(part * PIECE, stop, BLOCK):
        count, here, there = min(BLOCK, stop - start), x + start * 4, y + start * 4
        for i in range(count):
            set_f32(held, i, f32(here, i) + f32(there, i))
        copy_bytes(out + start * 4, held, count * 4)


@exact
def gelu(r, part):
    """record   out, x, count."""
    out, x, held = i64(r, 0), i64(r, 1), hold()
    stop = min((part + 1) * PIECE, i64(r, 2))
    for start in range(part * PIECE, stop, BLOCK):
        count, here = min(BLOCK, stop - start), x + start * 4
        for i in range(count):
            set_f32(held, i, f32(here, i) * (HALF * (ONE + erf(f32(here, i) * ROOT_HALF))))
        copy_bytes(out + start * 4, held, count * 4)


@exact
def elu(r, part):
    """record   out, x, count."""
    out, x, held = i64(r, 0), i64(r, 1), hold()
    stop = min((part + 1) * PIECE, i64(r, 2))
    for start in range(part * PIECE, stop, BLOCK):
        count, here = min(BLOCK, stop - start), x + start * 4
        for i in range(count):
            value = f32(here, i)
            below = expm1(value if value < ZERO else ZERO)
            set_f32(held, i, value if value > ZERO else below)
        copy_bytes(out + start * 4, held, count * 4)


@exact
def silu_mul(r, part):
    """record   out, gate, up, count."""
    out, gate, up, held = i64(r, 0), i64(r, 1), i64(r, 2), hold()
    stop = min((part + 1) * PIECE, i64(r, 3))
    for start in range(part * PIECE, stop, BLOCK):
        count, here, there = min(BLOCK, stop - start), gate + start * 4, up + start * 4
        for i in range(count):
            set_f32(held, i, silu(f32(here, i)) * f32(there, i))
        copy_bytes(out + start * 4, held, count * 4)
