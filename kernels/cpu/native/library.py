"""Every kernel of one instruction set, as LLVM text: what machine.py builds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernels.cpu.native import (
    attention,
    conv,
    execute,
    linear,
    norm,
    pointwise,
    products,
    rope,
    select,
)
from kernels.cpu.native.emitter import I64, Emitter, Value, ir
from kernels.cpu.native.sets import InstructionSet
from kernels.cpu.native.words import llvm_text

PLAIN = (
    linear.interleave, linear.embed_blocks, linear.embed_dense, linear.copy, norm.rms_norm, norm.layer_norm,
    rope.turns, rope.rope, conv.patches, conv.keep_tail, pointwise.add, pointwise.gelu, pointwise.elu,
    pointwise.silu_mul, select.argmax, select.nearest, select.pick, select.advance,
)  # fmt: skip
RING_KINDS = ("f16", "f32")
Emission = Callable[[Emitter, Value, Value], None]


def emissions(isa: InstructionSet) -> dict[str, Emission]:
    """The kernels that are emitted without numba, by name."""
    made: dict[str, Emission] = {
        "quantise": lambda e, r, part: products.emit_quantise(e, isa, r, part),
        "read": lambda e, r, part: products.emit_read(e, isa, r, part),
    }
    for kind in products.BLOCKS:
        for exact in (False, True):

            def blocks(e: Emitter, r: Value, part: Value, kind: products.Blocks = kind, exact: bool = exact):
                products.emit_blocks(e, kind, isa, exact, r, part)

            made[f"{kind.name}_{'f32' if exact else 'int8'}"] = blocks
    for dense in products.DENSE_BYTES:

        def rows(e: Emitter, r: Value, part: Value, dense: str = dense):
            products.emit_dense(e, dense, isa, r, part)

        made[f"dense_{dense}"] = rows
    return made


def emitted_text(isa: InstructionSet) -> str:
    """One module of all emissions; nothing in it depends on the machine that emits it."""
    module = ir.Module(isa.name)
    for name, emission in emissions(isa).items():
        function = ir.Function(module, ir.FunctionType(I64, [I64, I64]), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        body = function.append_basic_block("body")
        builder.branch(body)  # variables go into the entry block, ahead of all code
        builder.position_at_end(body)
        e = Emitter(builder)
        emission(e, e.value(function.args[0]), e.value(function.args[1]))
        builder.ret(I64(0))
    return str(module)


def compiled_texts(isa: InstructionSet) -> Iterator[str]:
    """A module for each kernel that numba compiles, the executor last; names as of the functions."""
    for kernel in PLAIN:
        yield llvm_text(kernel, kernel.py_func.__name__)
    for kind in RING_KINDS:
        yield llvm_text(attention.append_kernel(kind, isa.halves), f"append_{kind}")
        yield llvm_text(attention.attend_kernel(kind, isa), f"attend_{kind}")
    for entry, operands in execute.ENTRIES:
        yield llvm_text(entry, entry.py_func.__name__, operands)


def kernel_names(isa: InstructionSet) -> list[str]:
    """What a record may run."""
    rings = [f"{verb}_{kind}" for kind in RING_KINDS for verb in ("append", "attend")]
    return [*emissions(isa), *(kernel.py_func.__name__ for kernel in PLAIN), *rings]
