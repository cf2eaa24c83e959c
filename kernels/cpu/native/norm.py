"""Norms of one row. Sums run over 16 and more lanes at once, so their rounding is far below an f32's."""

from __future__ import annotations

from numpy import float32

from kernels.cpu.native.words import as_f32, f32, i64, loops, root, set_f32

ONE = float32(1)


@loops
def rms_norm(r, part):
    """record   out, x, gain, scale or 0, width, eps as f32 bits."""
    out, x, gain, scale, width = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    eps = as_f32(i64(r, 5))
    x, out = x + part * width * 4, out + part * width * 4
    squares = float32(0)
    for i in range(width):
        squares += f32(x, i) * f32(x, i)
    factor = float32(1.0 / root(squares / float(width) + float(eps)))
    if scale:
        for i in range(width):
            set_f32(out, i, f32(x, i) * factor * f32(gain, i) * (ONE + f32(scale, i)))
    else:
        for i in range(width):
            set_f32(out, i, f32(x, i) * factor * f32(gain, i))


@loops
def layer_norm(r, part):
    """record   out, x, gain, bias, width, eps as f32 bits."""
    out, x, gain, bias, width = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    eps = as_f32(i64(r, 5))
    x, out = x + part * width * 4, out + part * width * 4
    total = float32(0)
    for i in range(width):
        total += f32(x, i)
    mean = float32(total / float(width))
    squares = float32(0)
    for i in range(width):
        gap = f32(x, i) - mean
        squares += gap * gap
    factor = float32(1.0 / root(squares / float(width) + float(eps)))
    for i in range(width):
        set_f32(out, i, (f32(x, i) - mean) * factor * f32(gain, i) + f32(bias, i))
