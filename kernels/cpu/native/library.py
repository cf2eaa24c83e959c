"""Every kernel of one instruction set, as LLVM text: what machine.py builds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kernels.cpu.layout import DENSE
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
    tiles,
)
from kernels.cpu.native.emitter import I64, Emitter, ir
from kernels.cpu.native.sets import InstructionSet
from kernels.cpu.native.words import llvm_text

PLAIN = (
    linear.interleave, linear.embed_blocks, linear.embed_dense, linear.copy, norm.rms_norm, norm.layer_norm,
    rope.turns, rope.rope, attention.append, attention.attend, conv.patches, conv.keep_tail, pointwise.add,
    pointwise.gelu, pointwise.elu, pointwise.silu_mul, select.argmax, select.nearest, select.pick,
    select.advance,
)  # fmt: skip
RING_KINDS = ("f16", "f32")
Emission = Callable[..., None]  # (emitter, its words)


def emissions(isa: InstructionSet) -> dict[str, tuple[int, Emission]]:
    """What is emitted without numba, by name, each with the number of words it takes.

    Kernels take two, a record and a part; the inner loops of attention six.
    """
    made: dict[str, tuple[int, Emission]] = {
        "quantise": (2, partial(products.emit_quantise, isa=isa)),
        "read": (2, partial(products.emit_read, isa=isa)),
    }
    for kind in products.BLOCKS:
        made[f"{kind.name}_int8"] = 2, partial(products.emit_blocks, kind=kind, isa=isa, exact=False)
        made[f"{kind.name}_f32"] = 2, partial(products.emit_blocks, kind=kind, isa=isa, exact=True)
    for dense in DENSE:
        made[f"dense_{dense}"] = 2, partial(products.emit_dense, kind=dense, isa=isa)
    for ring in RING_KINDS:
        for rows in {1, isa.dense_tile}:
            made[f"scores_{ring}_{rows}"] = 6, partial(tiles.emit_scores, kind=ring, isa=isa, rows=rows)
            made[f"mix_{ring}_{rows}"] = 6, partial(tiles.emit_mix, kind=ring, isa=isa, rows=rows)
    return made


def emitted_text(isa: InstructionSet) -> str:
    """One module of all emissions; nothing in it depends on the machine that emits it."""
    module = ir.Module(isa.name)
    for name, (words, emission) in emissions(isa).items():
        function = ir.Function(module, ir.FunctionType(I64, [I64] * words), name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        body = function.append_basic_block("body")
        builder.branch(body)  # variables go into the entry block, ahead of all code
        builder.position_at_end(body)
        e = Emitter(builder)
        emission(e, *(e.value(word) for word in function.args))
        builder.ret(I64(0))
    return str(module)


def compiled_texts() -> Iterator[str]:
    """A module for each kernel that numba compiles, the executor last; the same for every instruction set."""
    for kernel in PLAIN:
        yield llvm_text(kernel, kernel.py_func.__name__)
    for entry, operands in execute.ENTRIES:
        yield llvm_text(entry, entry.py_func.__name__, operands)


def facts(isa: InstructionSet) -> dict[str, Any]:
    """What whoever loads the code has to know of it; see `Library` in machine.py."""
    return {
        "kernels": [*emissions(isa), *(kernel.py_func.__name__ for kernel in PLAIN)],
        "executor": {entry.py_func.__name__: operands for entry, operands in execute.ENTRIES},
        "height": isa.rows,
        "tile": isa.dense_tile,
        "seeds": {kind.name: products.seed_factor(kind, isa) for kind in products.BLOCKS},
    }
