"""LLVM vector code written as arithmetic: `Value` overloads the operators, `Emitter` adds memory and loops.

What is emitted here has no instruction set in it; see sets.py for the few operations that have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
CONTRACT = ("contract",)


class Value:
    """A number or a vector of the function being emitted; operands may be Python numbers."""

    __slots__ = ("builder", "llvm")

    def __init__(self, builder: ir.IRBuilder, llvm: ir.Value):
        self.builder, self.llvm = builder, llvm

    @property
    def type(self) -> ir.Type:
        return self.llvm.type

    @property
    def lanes(self) -> int:
        return self.type.count if isinstance(self.type, ir.VectorType) else 1

    @property
    def element(self) -> ir.Type:
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    def __add__(self, other: Any) -> Value:
        return self._two(other, "add", "fadd")

    def __sub__(self, other: Any) -> Value:
        return self._two(other, "sub", "fsub")

    def __mul__(self, other: Any) -> Value:
        return self._two(other, "mul", "fmul")

    def __truediv__(self, other: Any) -> Value:
        return self._two(other, "sdiv", "fdiv")

    def __floordiv__(self, other: Any) -> Value:
        """Of numbers that are not negative."""
        return self._two(other, "udiv", "udiv")

    def __mod__(self, other: Any) -> Value:
        """Of numbers that are not negative."""
        return self._two(other, "urem", "urem")

    def __and__(self, other: Any) -> Value:
        return self._two(other, "and_", "and_")

    def __or__(self, other: Any) -> Value:
        return self._two(other, "or_", "or_")

    def __xor__(self, other: Any) -> Value:
        return self._two(other, "xor", "xor")

    def __lshift__(self, other: Any) -> Value:
        return self._two(other, "shl", "shl")

    def __rshift__(self, other: Any) -> Value:
        """Zeros come in from above."""
        return self._two(other, "lshr", "lshr")

    def shift_signed(self, by: int) -> Value:
        return self._two(by, "ashr", "ashr")

    def __lt__(self, other: Any) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Any) -> Value:
        return self._compare("<=", other)

    def __ge__(self, other: Any) -> Value:
        return self._compare(">=", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare(">", other)

    def differs(self, other: Any) -> Value:
        return self._compare("!=", other)

    def where(self, yes: Value, no: Value) -> Value:
        """`yes` where this is true, else `no`."""
        return self._new(self.builder.select(self.llvm, yes.llvm, no.llvm))

    def to(self, element: ir.Type, *, unsigned: bool = False) -> Value:
        """The same number as another type."""
        was, target = self.element, self._shaped(element)
        if isinstance(was, ir.IntType) and isinstance(element, ir.IntType):
            grow = self.builder.zext if unsigned else self.builder.sext
            change = self.builder.trunc if element.width < was.width else grow
        elif isinstance(was, ir.IntType):
            change = self.builder.uitofp if unsigned else self.builder.sitofp
        elif isinstance(element, ir.IntType):
            change = self.builder.fptosi
        else:
            change = self.builder.fpext if isinstance(was, ir.HalfType) else self.builder.fptrunc
        return self._new(change(self.llvm, target))

    def bits(self, element: ir.Type, lanes: int | None = None) -> Value:
        """The same bits, as `lanes` of `element` (as many as there are now, unless said)."""
        count = self.lanes if lanes is None else lanes
        shape = element if count == 1 else ir.VectorType(element, count)
        return self._new(self.builder.bitcast(self.llvm, shape))

    def splat(self, lanes: int) -> Value:
        """A vector of this number."""
        kind = ir.VectorType(self.type, lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), self.llvm, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self._new(self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros))

    def shuffle(self, lanes: Sequence[int], other: Value | None = None) -> Value:
        """The lanes named, of this vector followed by `other`."""
        second = ir.Constant(self.type, ir.Undefined) if other is None else other.llvm
        picked = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self._new(self.builder.shuffle_vector(self.llvm, second, picked))

    def lane(self, index: int) -> Value:
        return self._new(self.builder.extract_element(self.llvm, I32(index)))

    def _two(self, other: Any, whole: str, real: str) -> Value:
        right = other.llvm if isinstance(other, Value) else self._constant(other)
        if isinstance(self.element, ir.IntType):
            return self._new(getattr(self.builder, whole)(self.llvm, right))
        return self._new(getattr(self.builder, real)(self.llvm, right, flags=CONTRACT))

    def _compare(self, sign: str, other: Any) -> Value:
        right = other.llvm if isinstance(other, Value) else self._constant(other)
        whole = isinstance(self.element, ir.IntType)
        compare = self.builder.icmp_signed if whole else self.builder.fcmp_ordered
        return self._new(compare(sign, self.llvm, right))

    def _constant(self, number: float) -> ir.Constant:
        return ir.Constant(self.type, number if self.lanes == 1 else [number] * self.lanes)

    def _shaped(self, element: ir.Type) -> ir.Type:
        return element if self.lanes == 1 else ir.VectorType(element, self.lanes)

    def _new(self, llvm: ir.Value) -> Value:
        return Value(self.builder, llvm)


class Slot:
    """A variable; LLVM keeps it in a register."""

    __slots__ = ("builder", "pointer")

    def __init__(self, first: Value):
        self.builder = first.builder
        with self.builder.goto_entry_block():
            self.pointer = self.builder.alloca(first.type)
        self.set(first)

    def get(self) -> Value:
        return Value(self.builder, self.builder.load(self.pointer))

    def set(self, value: Value) -> None:
        self.builder.store(value.llvm, self.pointer)


class Emitter:
    """Constants, memory, intrinsics and control flow around one IRBuilder. Addresses are I64 values."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    def value(self, llvm: ir.Value) -> Value:
        return Value(self.builder, llvm)

    def constant(self, number: float, element: ir.Type, lanes: int = 1) -> Value:
        shape = element if lanes == 1 else ir.VectorType(element, lanes)
        return self.value(ir.Constant(shape, number if lanes == 1 else [number] * lanes))

    def load(self, address: Value, element: ir.Type, lanes: int = 1) -> Value:
        """`lanes` elements from any byte on."""
        shape = element if lanes == 1 else ir.VectorType(element, lanes)
        return self.value(self.builder.load(self._pointer(address, shape), align=1))

    def store(self, value: Value, address: Value) -> None:
        self.builder.store(value.llvm, self._pointer(address, value.type), align=1)

    def load_first(self, count: Value, address: Value, element: ir.Type, lanes: int) -> Value:
        """The first `count` of `lanes` elements; zeros for the others, whose memory is not touched."""
        shape = ir.VectorType(element, lanes)
        mask, zeros = self._first(count, lanes), self.constant(0, element, lanes)
        name = f"llvm.masked.load.{_suffix(shape)}.p0"
        operands = [self._pointer(address, shape), I32(1), mask.llvm, zeros.llvm]
        return self.intrinsic(name, shape, operands)

    def store_first(self, count: Value, value: Value, address: Value) -> None:
        """Stores the first `count` lanes."""
        mask = self._first(count, value.lanes)
        name = f"llvm.masked.store.{_suffix(value.type)}.p0"
        operands = [value.llvm, self._pointer(address, value.type), I32(1), mask.llvm]
        self.intrinsic(name, ir.VoidType(), operands)

    def prefetch(self, address: Value) -> None:
        """Begin to bring a cache line to the second level; any address will do.

        To the first level it would queue with the loads that the core is waiting for: attention over cold
        keys took 250 us that way, 170 us this way, and 160 us over hot ones.
        """
        operands = [self._pointer(address, I8), I32(0), I32(2), I32(1)]  # for reading, second level, data
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), operands)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, with one rounding where the target has an instruction for it."""
        operands = [value.llvm for value in (a, b, c)]
        return self.intrinsic(f"llvm.fmuladd.{_suffix(a.type)}", a.type, operands)

    def intrinsic(self, name: str, result: ir.Type, operands: Sequence[ir.Value]) -> Value:
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        known = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        return self.value(self.builder.call(known, operands))

    @contextmanager
    def counting(self, stop: Value, start: Value | None = None) -> Iterator[Value]:
        """A loop; gives the I64 number of the round."""
        first = self.constant(0, I64) if start is None else start
        head, body, after = (self.builder.append_basic_block(name) for name in ("head", "body", "after"))
        before = self.builder.block
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(I64)
        index.add_incoming(first.llvm, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, stop.llvm), body, after)
        self.builder.position_at_end(body)
        yield self.value(index)
        index.add_incoming(self.builder.add(index, I64(1)), self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.llvm):
            yield

    @contextmanager
    def either(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """Two context managers: what to do if `condition` holds, and if not."""
        with self.builder.if_else(condition.llvm) as branches:
            yield branches

    def _first(self, count: Value, lanes: int) -> Value:
        order = self.value(ir.Constant(ir.VectorType(I64, lanes), list(range(lanes))))
        return order < count.splat(lanes)

    def _pointer(self, address: Value, shape: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address.llvm, shape.as_pointer())


def _suffix(shape: ir.Type) -> str:
    element = shape.element if isinstance(shape, ir.VectorType) else shape
    if isinstance(element, ir.IntType):
        name = f"i{element.width}"
    else:
        name = "f16" if isinstance(element, ir.HalfType) else "f32"
    return f"v{shape.count}{name}" if isinstance(shape, ir.VectorType) else name
