"""Matrix products out[m, n] = sum over k of x[m, k] * w[n, k], emitted for one instruction set.

A block kind keeps `rows` rows interleaved: for every 32 columns the f16 scales of the rows, then quads (see
sets.py). A part of the work is some groups of that many rows; a weight is unpacked once for `tile` rows of x.
x comes as bytes with a scale per 32 of them, or as f32. Dense kinds stand row by row; a part is some groups
of four rows.

    record   w, x, out, bias, added, items, rows, columns, groups in a part
    bias     [rows] f32 or 0; added : [items, rows] f32 or 0, added to what is stored
    x        [items, columns] f32, or [blocks, items] of 32 bytes, their f32 scale, and as i32 what a sum over
             them starts from, so that weights can be held unsigned
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kernels.cpu.layout import BLOCK, DENSE_HEIGHT, X_BYTES, X_SCALE, X_SEED
from kernels.cpu.native.emitter import FLOAT, I8, I16, I32, I64, Emitter, Slot, Value
from kernels.cpu.native.sets import QUADS, InstructionSet, load_halves, nibble

EXACT_TILE = 4  # rows of x in f32 that share one pass: more of them would double the code
QUIET = 1e-36  # the largest size of a block that counts as silence; 127 / x is finite above it
W, X, OUT, BIAS, ADDED, ITEMS, ROWS, COLUMNS, GROUPS = range(9)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A kind stored in blocks of 32.

    size : bytes of one row's block
    offset : what its bytes, unsigned, exceed the weights by; 0 where they are signed
    """

    name: str
    size: int
    offset: int

    def quads(self, e: Emitter, at: Value, rows: int) -> list[Value]:
        """The QUADS vectors <4 rows x i8> of the block at `at`."""
        width, first = 4 * rows, at + 2 * rows
        packed = [e.load(first + i * width, I8, width) for i in range((self.size - 2) // 4)]
        if len(packed) == QUADS:
            return packed
        return [part & 15 for part in packed] + [part >> 4 for part in packed]

    def columns(self, e: Emitter, at: Value, isa: InstructionSet) -> Iterator[tuple[int, Value]]:
        """(column, its weights <rows x f32> before scaling) for the 32 columns of the block."""
        first, width = at + 2 * isa.rows, 4 * isa.rows
        for quad in range((self.size - 2) // 4):
            words = e.load(first + quad * width, I32, isa.rows)
            for byte in range(4):
                if self.offset:
                    yield 4 * quad + byte, nibble(e, isa, words, 2 * byte)
                    yield 16 + 4 * quad + byte, nibble(e, isa, words, 2 * byte + 1)
                else:
                    yield 4 * quad + byte, (words << 24 - 8 * byte).shift_signed(24).to(FLOAT)


Q4_0, Q8_0 = BLOCKS = Blocks("q4_0", 18, 8), Blocks("q8_0", 34, 0)


def seed_factor(kind: Blocks, isa: InstructionSet) -> int:
    """The sum of x's bytes times this is the seed of a block."""
    return -(kind.offset or isa.signed_offset)


class Operands:
    """The words of a record, read at the top of a kernel."""

    def __init__(self, e: Emitter, record: Value):
        self._words = [e.load(record + 8 * i, I64) for i in range(GROUPS + 1)]

    def __getitem__(self, index: int) -> Value:
        return self._words[index]


Tile = Callable[[Value, Value, int], Sequence[Value]]  # (group, first row of x, rows of x) -> a vector each


def emit_blocks(
    e: Emitter, record: Value, part: Value, *, kind: Blocks, isa: InstructionSet, exact: bool
) -> None:
    """The kernel of a block kind; `exact` takes x as f32, else as bytes."""
    given = Operands(e, record)
    blocks = given[COLUMNS] // BLOCK
    tile_of = exact_tile if exact else byte_tile

    def tile(group: Value, first: Value, items: int) -> Sequence[Value]:
        return tile_of(e, kind, isa, given, blocks, group, first, items)

    _sweep(e, given, part, isa.rows, min(isa.tile, EXACT_TILE) if exact else isa.tile, tile)


def emit_dense(e: Emitter, record: Value, part: Value, *, kind: str, isa: InstructionSet) -> None:
    """The kernel of a dense kind."""
    given = Operands(e, record)
    stride = given[COLUMNS] * DENSE_BYTES[kind]

    def tile(group: Value, first: Value, items: int) -> Sequence[Value]:
        last = given[ROWS] - 1
        rows = []
        for i in range(DENSE_HEIGHT):
            row = group * DENSE_HEIGHT + i
            rows.append(given[W] + (row < last).where(row, last) * stride)
        xs = [given[X] + (first + j) * given[COLUMNS] * 4 for j in range(items)]
        return dense_tile(e, kind, isa, rows, xs, given[COLUMNS], stride * DENSE_HEIGHT)

    _sweep(e, given, part, DENSE_HEIGHT, isa.dense_tile, tile)


def _sweep(e: Emitter, given: Operands, part: Value, height: int, most: int, tile: Tile) -> None:
    """All items over the groups of `part`: as many as `most` at a time, then the rest in powers of two."""
    groups = (given[ROWS] + (height - 1)) // height
    start, stop = part * given[GROUPS], (part + 1) * given[GROUPS]
    with e.counting((stop < groups).where(stop, groups), start) as group:

        def run(first: Value, items: int) -> None:
            for j, value in enumerate(tile(group, first, items)):
                _finish(e, given, value, group * height, first + j)

        with e.counting(given[ITEMS] // most) as turn:
            run(turn * most, most)
        items = most // 2
        while items:
            with e.when((given[ITEMS] & items).differs(0)):
                run(given[ITEMS] - (given[ITEMS] & 2 * items - 1), items)
            items //= 2


def _finish(e: Emitter, given: Operands, value: Value, row: Value, item: Value) -> None:
    """Adds what is to be added, and stores the rows that there are."""
    at = item * given[ROWS] + row
    left, total = given[ROWS] - row, Slot(value)
    with e.either(left >= value.lanes) as (whole, partial):
        for branch, full in ((whole, True), (partial, False)):
            with branch:
                for operand, index in ((BIAS, row), (ADDED, at)):
                    with e.when(given[operand].differs(0)):
                        address = given[operand] + index * 4
                        if full:
                            more = e.load(address, FLOAT, value.lanes)
                        else:
                            more = e.load_first(left, address, FLOAT, value.lanes)
                        total.set(total.get() + more)
                if full:
                    e.store(total.get(), given[OUT] + at * 4)
                else:
                    e.store_first(left, total.get(), given[OUT] + at * 4)


def byte_tile(
    e: Emitter, kind: Blocks, isa: InstructionSet, given: Operands, blocks: Value, group: Value, first: Value,
    items: int,
) -> Sequence[Value]:
    """Sums of bytes are exact in i32; each block's is scaled by both scales and added in f32."""
    size = kind.size * isa.rows
    totals = [Slot(e.constant(0.0, FLOAT, isa.rows)) for _ in range(items)]
    base = given[W] + group * blocks * size
    with e.counting(blocks) as block:
        at = base + block * size
        steps = load_halves(e, isa, at, isa.rows)
        weights = kind.quads(e, at, isa.rows)
        xs = given[X] + (block * given[ITEMS] + first) * X_BYTES
        for j, total in enumerate(totals):
            x = xs + j * X_BYTES
            quads = [e.load(x + 4 * i, I32).splat(isa.rows) for i in range(QUADS)]
            if seed_factor(kind, isa):
                seed = e.load(x + X_SEED, I32).splat(isa.rows)
            else:
                seed = e.constant(0, I32, isa.rows)
            sums = isa.dots(e, weights, quads, seed, kind.offset == 0).to(FLOAT)
            step = e.load(x + X_SCALE, FLOAT).splat(isa.rows)
            total.set(e.fma(sums, steps * step, total.get()))
    return [total.get() for total in totals]


def exact_tile(
    e: Emitter, kind: Blocks, isa: InstructionSet, given: Operands, blocks: Value, group: Value, first: Value,
    items: int,
) -> Sequence[Value]:
    """Whole steps times f32, summed over a block, then scaled."""
    size, zeros = kind.size * isa.rows, e.constant(0.0, FLOAT, isa.rows)
    chains = max(1, 4 // items)  # sums in flight per row of x, to hide the latency of one
    totals = [Slot(zeros) for _ in range(items)]
    base = given[W] + group * blocks * size
    with e.counting(blocks) as block:
        at = base + block * size
        steps = load_halves(e, isa, at, isa.rows)
        sums = [[zeros] * chains for _ in range(items)]
        for n, (column, weights) in enumerate(kind.columns(e, at, isa)):
            for j in range(items):
                x = given[X] + (((first + j) * blocks + block) * BLOCK + column) * 4
                factor = e.load(x, FLOAT).splat(isa.rows)
                sums[j][n % chains] = e.fma(weights, factor, sums[j][n % chains])
        for chain, total in zip(sums, totals, strict=True):
            while len(chain) > 1:
                chain = [a + b for a, b in zip(chain[::2], chain[1::2], strict=True)]
            total.set(e.fma(chain[0], steps, total.get()))
    return [total.get() for total in totals]


DENSE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def dense_tile(
    e: Emitter, kind: str, isa: InstructionSet, rows: Sequence[Value], xs: Sequence[Value], columns: Value,
    ahead: Value | None = None,
) -> Sequence[Value]:
    """Dot products of four rows of weights with some rows of x: a vector of four for each row of x.

    rows, xs : addresses of their first elements; x is f32
    ahead : bytes from each element to what will be read next, and is brought nearer
    """
    lanes = isa.lanes
    zeros = e.constant(0.0, FLOAT, lanes)
    totals = [[Slot(zeros) for _ in rows] for _ in xs]
    with e.counting(columns // lanes) as turn:
        at = turn * lanes
        weights = [load_dense(e, kind, isa, row, at, lanes) for row in rows]
        for row in rows if ahead is not None else ():
            e.prefetch(row + at * DENSE_BYTES[kind] + ahead)
        for x, sums in zip(xs, totals, strict=True):
            values = e.load(x + at * 4, FLOAT, lanes)
            for weight, total in zip(weights, sums, strict=True):
                total.set(e.fma(weight, values, total.get()))
    results = [Slot(_four_sums([total.get() for total in sums])) for sums in totals]
    with e.counting(columns, columns - columns % lanes) as at:
        parts = [load_dense(e, kind, isa, row, at, 1).splat(4) for row in rows]
        low, high = parts[0].shuffle((0, 4), parts[1]), parts[2].shuffle((0, 4), parts[3])
        weight = low.shuffle(range(4), high)
        for x, result in zip(xs, results, strict=True):
            result.set(e.fma(weight, e.load(x + at * 4, FLOAT).splat(4), result.get()))
    return [result.get() for result in results]


def load_dense(
    e: Emitter, kind: str, isa: InstructionSet, row: Value, index: Value, lanes: int
) -> Value:
    """Elements of a stored row as f32."""
    if kind == "f32":
        return e.load(row + index * 4, FLOAT, lanes)
    if kind == "f16":
        return load_halves(e, isa, row + index * 2, lanes)
    return (e.load(row + index * 2, I16, lanes).to(I32, unsigned=True) << 16).bits(FLOAT)


def _four_sums(vectors: Sequence[Value]) -> Value:
    """The sums over the lanes of four vectors, as one vector of four."""
    lanes = vectors[0].lanes
    a, b, c, d = vectors
    while lanes > 4:  # fold each in two, two of them side by side
        half = lanes // 2
        fold = [(v.shuffle(range(half)) + v.shuffle(range(half, lanes))) for v in (a, b, c, d)]
        a, b, c, d = fold
        lanes = half
    ab = a.shuffle((0, 4, 2, 6), b) + a.shuffle((1, 5, 3, 7), b)  # a01 b01 a23 b23
    cd = c.shuffle((0, 4, 2, 6), d) + c.shuffle((1, 5, 3, 7), d)
    return ab.shuffle((0, 1, 4, 5), cd) + ab.shuffle((2, 3, 6, 7), cd)


def emit_quantise(e: Emitter, record: Value, part: Value, *, isa: InstructionSet) -> None:
    """Row `part` of x as bytes: 127 is the largest size in each block of 32.

    record   x, out, items, columns, factor; the seed of a block is its sum times `factor`
    """
    x, out, items, columns, factor = (e.load(record + 8 * i, I64) for i in range(5))
    blocks, lanes = columns // BLOCK, isa.lanes
    with e.counting(blocks) as block:
        at = x + (part * blocks + block) * (4 * BLOCK)
        to = out + (block * items + part) * X_BYTES
        parts = [e.load(at + 4 * i, FLOAT, lanes) for i in range(0, BLOCK, lanes)]
        sizes = [(part.bits(I32) & 0x7FFFFFFF) for part in parts]
        while len(sizes) > 1:
            sizes = [(a > b).where(a, b) for a, b in zip(sizes[::2], sizes[1::2], strict=True)]
        most = e.intrinsic(f"llvm.vector.reduce.smax.v{lanes}i32", I32, [sizes[0].llvm]).bits(FLOAT)
        step = most * (1 / 127)
        inverse = (most > QUIET).where(e.constant(127.0, FLOAT) / most, e.constant(0.0, FLOAT))
        whole = [_whole(part * inverse.splat(lanes)) for part in parts]
        for i, words in enumerate(whole):
            e.store(words.to(I8), to + i * lanes)
        while len(whole) > 1:
            whole = [a + b for a, b in zip(whole[::2], whole[1::2], strict=True)]
        total = e.intrinsic(f"llvm.vector.reduce.add.v{lanes}i32", I32, [whole[0].llvm])
        e.store(step, to + X_SCALE)
        e.store(total * factor.to(I32), to + X_SEED)


def _whole(values: Value) -> Value:
    """To the nearest whole number, halves to even, as i32; sizes up to 2^22."""
    magic = 1.5 * 2**23
    return (values + magic).bits(I32) - 0x4B400000


def emit_read(e: Emitter, record: Value, part: Value, *, isa: InstructionSet) -> None:
    """Reads bytes and keeps nothing of them: what a processor can read at most, to hold the others against.

    record   memory, bytes in a part, where to store a word that depends on all of them
    """
    memory, size, out = (e.load(record + 8 * i, I64) for i in range(3))
    width, chains = 4 * isa.lanes, 8
    start, totals = memory + part * size, [Slot(e.constant(0, I32, isa.lanes)) for _ in range(8)]
    with e.counting(size // (width * chains)) as turn:
        for i, total in enumerate(totals):
            at = start + (turn * chains + i) * width
            total.set(total.get() ^ e.load(at, I32, isa.lanes))
    left = [total.get() for total in totals]
    while len(left) > 1:
        left = [a ^ b for a, b in zip(left[::2], left[1::2], strict=True)]
    e.store(left[0].lane(0) ^ left[0].lane(isa.lanes - 1), out)
