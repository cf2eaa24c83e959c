"""The door to numba: Python functions become LLVM text; memory is read and written by address.

A *kernel* is a function (record, part) of two addresses-or-numbers, compiled without numba's runtime: no
arrays, no exceptions, no allocation. What it needs it reads from its record, 64-bit words laid out by
kernels/cpu/plan.py.

    @loops      sums may be reordered, so that LLVM vectorises them
    @exact      every rounding as written, but for fused multiply-adds
    @strict     not even those: error-free splits survive
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

import numba.extending
from numba import types
from numba.core.errors import NumbaError

from kernels.cpu.native.emitter import FLOAT, I8, I16, I32, I64, Emitter, ir
from kernels.errors import CompileError

DOUBLE = ir.DoubleType()

intrinsic: Any = numba.extending.intrinsic  # what it makes has other arguments than what it decorates
_SHARED: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
loops: Any = numba.njit(**_SHARED, fastmath={"reassoc", "contract", "nsz"})
exact: Any = numba.njit(**_SHARED, fastmath={"contract"})
strict: Any = numba.njit(**_SHARED)

_BODY = re.compile(r'^define (?!linkonce|internal|private)[^@\n]*@(?P<name>[^(\s]+)\(', re.MULTILINE)


def llvm_text(kernel: Any, name: str, arguments: int = 2) -> str:
    """LLVM assembly that exports `kernel` as `i64 name(i64, ...)`.

    Raises
    ------
    CompileError   if numba refuses it, or gives it another shape than this expects
    """
    signature = (types.int64,) * arguments
    try:
        kernel.compile(signature)
        text = kernel.inspect_llvm(signature)
    except NumbaError as wrong:
        raise CompileError(f"{name}: numba does not compile it: {wrong}") from wrong
    bodies = [found["name"] for found in _BODY.finditer(text)]
    if len(bodies) != 1:
        raise CompileError(f"{name}: expected one function from numba, found {len(bodies)}: {bodies!r}")
    given = ", ".join(f"i64 %a{i}" for i in range(arguments))
    return f"""{text}
define i64 @{name}({given}) {{
  %result = alloca i64
  %problem = alloca ptr
  store i64 0, ptr %result
  call i32 @{bodies[0]}(ptr %result, ptr %problem, {given})
  %value = load i64, ptr %result
  ret i64 %value
}}
"""


def at(builder: ir.IRBuilder, address: ir.Value, element: ir.Type, index: ir.Value | None = None) -> ir.Value:
    pointer = builder.inttoptr(address, element.as_pointer())
    return pointer if index is None else builder.gep(pointer, [index])


def _reader(element: ir.Type, seen_as: types.Type, convert: Callable[..., ir.Value] | None = None) -> Any:
    """(address, index) -> the element there, which may stand at any byte."""

    @intrinsic
    def read(context, address, index):
        def emit(context, builder, signature, values):
            value = builder.load(at(builder, values[0], element, values[1]), align=1)
            return value if convert is None else convert(builder, value)

        return seen_as(types.int64, types.int64), emit

    return read


def _writer(element: ir.Type, given_as: types.Type, convert: Callable[..., ir.Value] | None = None) -> Any:
    """(address, index, value) -> None."""

    @intrinsic
    def write(context, address, index, value):
        def emit(context, builder, signature, values):
            value = values[2] if convert is None else convert(builder, values[2])
            builder.store(value, at(builder, values[0], element, values[1]), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, given_as), emit

    return write


def _widen(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.zext(value, I64)


def _signed(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.sext(value, I64)


def _narrow(to: ir.Type) -> Callable[..., ir.Value]:
    return lambda builder, value: builder.trunc(value, to)


f32, f64 = _reader(FLOAT, types.float32), _reader(DOUBLE, types.float64)
i32, i64 = _reader(I32, types.int64, _signed), _reader(I64, types.int64)
i8, u8, u16, u32 = (
    _reader(I8, types.int64, _signed), _reader(I8, types.int64, _widen), _reader(I16, types.int64, _widen),
    _reader(I32, types.int64, _widen),
)  # fmt: skip
set_f32, set_i64 = _writer(FLOAT, types.float32), _writer(I64, types.int64)
set_i32, set_u16, set_u8 = (_writer(kind, types.int64, _narrow(kind)) for kind in (I32, I16, I8))
set_rounded_i8 = _writer(I8, types.float32, lambda builder, value: builder.fptosi(value, I8))


@intrinsic
def as_word(context, value):
    """The bits of an f32."""

    def emit(context, builder, signature, values):
        return builder.zext(builder.bitcast(values[0], I32), I64)

    return types.int64(types.float32), emit


@intrinsic
def as_f32(context, word):
    """The f32 of these bits, the lower 32 of `word`."""

    def emit(context, builder, signature, values):
        return builder.bitcast(builder.trunc(values[0], I32), FLOAT)

    return types.float32(types.int64), emit


@intrinsic
def power_of_two(context, exponent):
    """2^exponent for a whole f32 from -126 to 127."""

    def emit(context, builder, signature, values):
        biased = builder.add(builder.fptosi(values[0], I32), I32(127))
        return builder.bitcast(builder.shl(biased, I32(23)), FLOAT)

    return types.float32(types.float32), emit


@intrinsic
def nearest_whole(context, value):
    """The nearest whole number of an f32 under 2^22, halves to even, by an addition that drops the rest."""

    def emit(context, builder, signature, values):
        magic = FLOAT(1.5 * 2**23)
        return builder.fsub(builder.fadd(values[0], magic), magic)

    return types.float32(types.float32), emit


@intrinsic
def nearest_whole_f64(context, value):
    """The same of an f64 under 2^51."""

    def emit(context, builder, signature, values):
        magic = DOUBLE(1.5 * 2.0**52)
        return builder.fsub(builder.fadd(values[0], magic), magic)

    return types.float64(types.float64), emit


@intrinsic
def root(context, value):
    """Square root of an f64."""

    def emit(context, builder, signature, values):
        sqrt = builder.module.declare_intrinsic("llvm.sqrt", [DOUBLE])
        return builder.call(sqrt, [values[0]])

    return types.float64(types.float64), emit


@intrinsic
def copy_bytes(context, to, source, count):
    """`count` bytes, regions that do not overlap."""

    def emit(context, builder, signature, values):
        pointers = [at(builder, value, I8) for value in values[:2]]
        operands = [*pointers, values[2], ir.IntType(1)(0)]
        Emitter(builder).intrinsic("llvm.memcpy.p0.p0.i64", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def largest_of_64(context, address):
    """The largest of 64 f32; a NaN counts as nothing."""

    def emit(context, builder, signature, values):
        e = Emitter(builder)
        rows = [e.load(e.value(values[0]) + 64 * i, FLOAT, 16) for i in range(4)]
        while len(rows) > 1:
            rows = [(a > b).where(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        return e.intrinsic("llvm.vector.reduce.fmax.v16f32", FLOAT, [rows[0].llvm]).llvm

    return types.float32(types.int64), emit


def room(count: int) -> Any:
    """() -> the address of `count` bytes on the stack, aligned to 64, alive until the kernel returns."""

    @intrinsic
    def stack(context):
        def emit(context, builder, signature, values):
            with builder.goto_entry_block():
                block = builder.alloca(ir.ArrayType(I8, count))
                block.align = 64
            return builder.ptrtoint(block, I64)

        return types.int64(), emit

    return stack


# --- for the executor


@intrinsic
def call(context, code, record, part):
    """Run the kernel whose code is at address `code`."""

    def emit(context, builder, signature, values):
        kind = ir.FunctionType(I64, [I64, I64])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def call_six(context, code, a, b, c, d, e, f):
    """Call what is emitted for six words."""

    def emit(context, builder, signature, values):
        kind = ir.FunctionType(I64, [I64] * 6)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit


@intrinsic
def call_plain(context, code):
    """Call a C function without arguments, whatever it returns."""

    def emit(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def atomic_load(context, address):
    def emit(context, builder, signature, values):
        return builder.load_atomic(at(builder, values[0], I64), "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def atomic_store(context, address, value):
    def emit(context, builder, signature, values):
        builder.store_atomic(values[1], at(builder, values[0], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def atomic_add(context, address, value):
    """Returns what was there before."""

    def emit(context, builder, signature, values):
        return builder.atomic_rmw("add", at(builder, values[0], I64), values[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def atomic_swap(context, address, expected, value):
    """1 if `expected` was there and is now replaced by `value`, else 0."""

    def emit(context, builder, signature, values):
        done = builder.cmpxchg(at(builder, values[0], I64), values[1], values[2], "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(done, 1), I64)

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def pause(context):
    """Tell the core that this is a waiting loop."""

    def emit(context, builder, signature, values):
        name, operands = _PAUSES.get(platform.machine().lower(), ("", []))
        if name:
            Emitter(builder).intrinsic(name, ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(), emit


_X86: tuple[str, list[ir.Value]] = ("llvm.x86.sse2.pause", [])
_ARM: tuple[str, list[ir.Value]] = ("llvm.aarch64.hint", [I32(1)])
_PAUSES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
