"""Causal convolution: patches for one matrix product, and the tail that the next step begins with."""

from __future__ import annotations

from kernels.cpu.native.words import copy_bytes, exact, f32, i32, i64, set_f32


@exact
def patches(r, part):
    """One row [C, k] of what the weights [N, C, k] are multiplied with.

    part     lane * steps + step
    record   out, tail, x, items, channels, taps, stride
    """
    out, tail, x, items = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3)
    channels, taps, stride = i64(r, 4), i64(r, 5), i64(r, 6)
    steps, kept = items // stride, taps - stride
    lane, step = part // steps, part % steps
    to = out + part * channels * taps * 4
    for tap in range(taps):
        heard = step * stride + tap
        if heard < kept:
            source = tail + (lane * kept + heard) * channels * 4
        else:
            source = x + (lane * items + heard - kept) * channels * 4
        for c in range(channels):
            set_f32(to, c * taps + tap, f32(source, c))


@exact
def keep_tail(r, part):
    """The last inputs of lane `part`, if it is active.

    record   tail, x, active, items, channels, kept
    """
    tail, x, active, items = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3)
    row, kept = i64(r, 4) * 4, i64(r, 5)
    if i32(active, part) == 0:
        return
    to = tail + part * kept * row
    for i in range(kept):  # ascending: what moves down lies above what was written
        if i + items < kept:
            copy_bytes(to + i * row, to + (i + items) * row, row)
        else:
            copy_bytes(to + i * row, x + (part * items + i + items - kept) * row, row)
