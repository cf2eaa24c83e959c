"""Instruction sets: what each calls its registers, and the dot product of bytes that decides the speed.

A *quad* is four neighbouring columns, as bytes. Weights stand row by row in the lanes: lane r of a vector
holds four bytes of row r, so a dot product with a splat of a quad of x adds four columns to every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.cpu.layout import BLOCK
from kernels.cpu.native.emitter import FLOAT, HALF, I8, I16, I32, Emitter, Value, ir

QUADS = BLOCK // 4  # in a block of columns

Dots = Callable[[Emitter, Sequence[Value], Sequence[Value], Value, bool], Value]


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What the emitted kernels are shaped by.

    name : as callers ask for it
    needs : host features without which it cannot run, in LLVM's words
    cpu : the processor to compile for; None for the host itself
    rows : rows of a stored block side by side, one per lane
    lanes : f32 lanes of a register
    tile : rows of x that share one pass over a block, their sums in registers
    dense_tile : the same beside four rows of a dense weight
    signed_offset : what is added to signed weights before the dot product, for instructions that need it
    dots : (weights [QUADS] of <4 rows x i8>, quads [QUADS] of <rows x i32>, start, signed) -> <rows x i32>
    halves : whether f16 is converted by an instruction
    """

    name: str
    needs: frozenset[str]
    cpu: str | None
    rows: int
    lanes: int
    tile: int
    dense_tile: int
    signed_offset: int
    dots: Dots
    halves: bool
    lookup: bool = False  # 16 f32 can be looked up by the lower 4 bits of a lane


def _vnni(
    e: Emitter, weights: Sequence[Value], quads: Sequence[Value], start: Value, signed: bool
) -> Value:
    """vpdpbusd: unsigned times signed; two chains hide its latency."""
    name, words = "llvm.x86.avx512.vpdpbusd.512", ir.VectorType(I32, 16)
    sums = [start, e.constant(0, I32, 16)]
    for i, (weight, quad) in enumerate(zip(weights, quads, strict=True)):
        unsigned = weight ^ -128 if signed else weight
        operands = [sums[i % 2].llvm, unsigned.bits(I32, 16).llvm, quad.llvm]
        sums[i % 2] = e.intrinsic(name, words, operands)
    return sums[0] + sums[1]


def _avx2(
    e: Emitter, weights: Sequence[Value], quads: Sequence[Value], start: Value, signed: bool
) -> Value:
    """vpmaddubsw: sums of two products in 16 bits.

    Eight unsigned nibbles fit: 8 * 2 * 15 * 127 = 30480. Signed weights give their sign to x, since the first
    operand is unsigned; 2 * 128 * 127 = 32512 fits once.
    """
    shorts, ones = ir.VectorType(I16, 16), e.constant(1, I16, 16)

    def pairs(unsigned: Value, x: Value) -> Value:
        return e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", shorts, [unsigned.llvm, x.llvm])

    def words(sums: Value) -> Value:
        return e.intrinsic("llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), [sums.llvm, ones.llvm])

    xs = [quad.bits(I8, 32) for quad in quads]
    if not signed:
        sums = pairs(weights[0], xs[0])
        for weight, x in zip(weights[1:], xs[1:], strict=True):
            sums = sums + pairs(weight, x)
        return start + words(sums)
    total, zeros = start, e.constant(0, I8, 32)
    for weight, x in zip(weights, xs, strict=True):
        negative = weight < 0
        size, turned = negative.where(zeros - weight, weight), negative.where(zeros - x, x)
        total = total + words(pairs(size, turned))
    return total


def _neon(
    e: Emitter, weights: Sequence[Value], quads: Sequence[Value], start: Value, signed: bool
) -> Value:
    """sdot on four rows at a time; nibbles are small enough to be signed."""
    name, words = "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4)
    parts = []
    for at in range(0, start.lanes, 4):
        total = start.shuffle(range(at, at + 4))
        for weight, quad in zip(weights, quads, strict=True):
            four, x = weight.shuffle(range(4 * at, 4 * at + 16)), quad.shuffle(range(4)).bits(I8, 16)
            total = e.intrinsic(name, words, [total.llvm, four.llvm, x.llvm])
        parts.append(total)
    while len(parts) > 1:
        width = 2 * parts[0].lanes
        parts = [a.shuffle(range(width), b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _plain(
    e: Emitter, weights: Sequence[Value], quads: Sequence[Value], start: Value, signed: bool
) -> Value:
    """Byte by byte, in lanes of 32 bits."""
    total = start
    for weight, quad in zip(weights, quads, strict=True):
        word = weight.bits(I32, start.lanes)
        for byte in range(4):
            w, x = (v << 24 - 8 * byte for v in (word, quad))
            total = total + w.shift_signed(24) * x.shift_signed(24)
    return total


def nibble(e: Emitter, isa: InstructionSet, words: Value, index: int) -> Value:
    """Nibble `index` of every lane of `words` <rows x i32>, minus 8, as f32."""
    shifted = words >> 4 * index if index else words
    if not isa.lookup:
        return ((shifted & 15) - 8).to(FLOAT)
    table = e.value(ir.Constant(ir.VectorType(FLOAT, 16), [float(n - 8) for n in range(16)]))
    operands = [table.llvm, shifted.llvm]
    return e.intrinsic("llvm.x86.avx512.permvar.sf.512", table.type, operands)


def load_halves(e: Emitter, isa: InstructionSet, address: Value, lanes: int = 1) -> Value:
    """f16 in memory as f32; without an instruction for it, exponents are re-biased by a multiplication."""
    if isa.halves:
        return e.load(address, HALF, lanes).to(FLOAT)
    bits = e.load(address, I16, lanes).to(I32, unsigned=True)
    magnitude = (bits & 0x7FFF) << 13
    finite = (magnitude.bits(FLOAT) * 2.0**112).bits(I32)
    special = magnitude | 0x7F800000
    words = (magnitude >= 0x7C00 << 13).where(special, finite)
    return (words | (bits & 0x8000) << 16).bits(FLOAT)


AVX512 = InstructionSet(
    "avx512", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"}), None,
    rows=16, lanes=16, tile=8, dense_tile=4, signed_offset=128, dots=_vnni, halves=True, lookup=True,
)  # fmt: skip
AVX2 = InstructionSet(
    "avx2", frozenset({"avx2", "f16c", "fma"}), "x86-64-v3",
    rows=8, lanes=8, tile=4, dense_tile=2, signed_offset=0, dots=_avx2, halves=True,
)  # fmt: skip
NEON = InstructionSet(
    "neon", frozenset({"neon", "dotprod"}), None,
    rows=16, lanes=4, tile=4, dense_tile=4, signed_offset=0, dots=_neon, halves=True,
)  # fmt: skip
GENERIC = InstructionSet(
    "generic", frozenset(), None,
    rows=8, lanes=4, tile=2, dense_tile=2, signed_offset=0, dots=_plain, halves=False,
)  # fmt: skip
SETS = {isa.name: isa for isa in (AVX512, AVX2, NEON, GENERIC)}  # best first
