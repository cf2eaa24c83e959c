"""Choices: indices out of scores, and the words of a decoder's loop."""

from __future__ import annotations

from numpy import float32

from kernels.cpu.native.words import as_f32, exact, f32, i32, i64, largest_of_64, loops, set_i32

LOWEST = float32(-3.4028235e38)
BLOCK = 64


@exact
def first_largest(x, start, stop):
    """The first index in [start, stop) of the largest value there; `start` if nothing compares."""
    best, at, end = LOWEST, start, start
    for block in range(start, stop - BLOCK + 1, BLOCK):
        value = largest_of_64(x + block * 4)
        if value > best:
            best, at = value, block
        end = block + BLOCK
    for i in range(end, stop):
        if f32(x, i) > best:
            best, at = f32(x, i), i
    for i in range(at, stop):
        if f32(x, i) >= best:
            return i
    return start


@exact
def argmax(r, part):
    """record   out, x, width."""
    out, x, width = i64(r, 0), i64(r, 1), i64(r, 2)
    set_i32(out, part, first_largest(x + part * width * 4, 0, width))


@loops
def gap(a, b, width):
    """Squared distance of two rows."""
    total = float32(0)
    for i in range(width):
        difference = f32(a, i) - f32(b, i)
        total += difference * difference
    return total


@exact
def nearest(r, part):
    """record   out, x, codebook, rows, width."""
    out, x, codebook, rows, width = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    point = x + part * width * 4
    best, least = 0, gap(point, codebook, width)
    for row in range(1, rows):
        distance = gap(point, codebook + row * width * 4, width)
        if distance < least:
            best, least = row, distance
    set_i32(out, part, best)


@exact
def pick(r, part):
    """record   out, x, run, active, width, blank, patience, slope and limit as f32 bits."""
    out, x, run, active, width = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3), i64(r, 4)
    blank, patience, slope, limit = i64(r, 5), i64(r, 6), as_f32(i64(r, 7)), as_f32(i64(r, 8))
    if i32(active, part) == 0:
        return
    row, excess = x + part * width * 4, i32(run, part) - patience
    choice = first_largest(row, 0, width)
    if excess > 0 and choice == blank:
        taken = slope * float32(excess)
        value = f32(row, blank) - (limit if taken > limit else taken)
        for start, stop in ((0, blank), (blank + 1, width)):
            if start < stop:
                other = first_largest(row, start, stop)
                if f32(row, other) > value or (f32(row, other) == value and other < choice):
                    choice, value = other, f32(row, other)
    set_i32(out, part, choice)
    set_i32(run, part, i32(run, part) + 1 if choice == blank else 0)


@exact
def advance(r, part):
    """record   token, picked, prompt, position, active, length of the prompt."""
    token, picked, prompt, position = i64(r, 0), i64(r, 1), i64(r, 2), i64(r, 3)
    if i32(i64(r, 4), part) == 0:
        return
    at = i32(position, part)
    set_i32(token, part, i32(prompt, at) if 0 <= at < i64(r, 5) else i32(picked, part))
