"""A call or more of every kernel, at small shapes that give all its warps work and every loop a tail.

For comparing schedules with each other, bit for bit, and for sanitizers to watch; whether what comes out is
right, the op suite says. `python -m tests.kernels.emulator.tour` walks it in the mode the environment names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from kernels import fused
from kernels.cuda import probe
from kernels.cuda.backend import Cuda
from tests.kernels.arrays import KINDS, normal, read, read_ring, weight, words
from tests.kernels.emulator.device import EmulatedDevice

Result = tuple[str, np.ndarray]

ROWS = (1, 2, 3, 4, 7, 12, 24, 48, 65, 130)  # of x: each capacity of each kernel once, not always full
COLUMNS = 1056  # 33 blocks of 32: half a step of 64 is left over
OUTPUTS = 37  # three tiles of 16, the last one hardly
WIDTHS = (5, 8, 16, 32, 64, 128)  # of heads
WIDTH = 544  # of a layer
HEADS, KEPT, HEAD = 4, 2, 16
THETA, EPS = 1e6, 1e-5


def backends(seed: int = 0) -> tuple[Cuda, ...]:
    """Both layouts and both kinds of ring; one processor, whose warps share no tile, and many, for splits."""
    return (
        Cuda(EmulatedDevice(seed=seed, processors=1)),
        Cuda(EmulatedDevice(seed=seed, processors=24)),
        Cuda(EmulatedDevice(seed=seed, processors=24, capability=(7, 5)), kv="q8", layout="rows"),
    )


def tour(ops: Cuda) -> Iterator[Result]:
    many, few = (products, attention, choices, layers), (norms, convolutions, points, probes)
    for part in many if ops.device.processors > 1 else (*many, *few):
        for name, result in part(ops):
            yield f"{part.__name__}: {name}", result


def products(ops: Cuda) -> Iterator[Result]:
    bias = ops.upload(normal(OUTPUTS))
    for kind in KINDS:
        w, _ = weight(ops, normal(OUTPUTS, COLUMNS, seed=1), kind)
        for rows in ROWS:
            out = ops.zeros((rows, OUTPUTS))
            ops.linear(out, ops.upload(normal(rows, COLUMNS)), w, bias)
            yield f"{kind}, {rows} rows", read(ops, out)
        out = ops.zeros((4, COLUMNS))
        ops.embed(out, ops.upload(words(0, OUTPUTS - 1, -1, OUTPUTS)), w)
        yield f"rows of {kind}", read(ops, out)


def norms(ops: Cuda) -> Iterator[Result]:
    for shape in ((3, 2, 1000), (1, 7)):
        x, gain, scale = (ops.upload(normal(*size)) for size in (shape, shape[-1:], shape[-1:]))
        for name, call in (
            ("rms_norm", partial(ops.rms_norm, gain=gain, eps=EPS)),
            ("rms_norm, scaled", partial(ops.rms_norm, gain=gain, eps=EPS, scale=scale)),
            ("layer_norm", partial(ops.layer_norm, gain=gain, bias=scale, eps=EPS)),
        ):
            out = ops.zeros(shape)
            call(out, x)
            yield f"{name} {shape}", read(ops, out)
    x = ops.upload(normal(2, 3, 5, 34))
    ops.rope(x, ops.upload(words(7, 100_000)), THETA)
    yield "rope", read(ops, x)


def attention(ops: Cuda) -> Iterator[Result]:
    """Lane 0 wraps its ring, lane 1 has begun, lane 2 sits out; few queries of a head, then many."""
    for width in WIDTHS:
        ring = ops.ring(3, KEPT, 150, width)
        for seed, (items, *active) in enumerate(((140, 1, 0, 0), (2, 1, 1, 0), (9, 1, 1, 0))):
            k, v = (ops.upload(normal(3, items, KEPT, width, seed=2 * seed + j)) for j in (0, 1))
            ops.append(ring, k, v, ops.upload(words(*active)))
            if items < 100:
                q = ops.upload(normal(3, items, HEADS, width, seed=seed))
                out = ops.zeros(q.shape)
                ops.attend(out, q, ring, 130)
                yield f"attend, {items} items of {width}", read(ops, out)[:2]
        for name, part in zip(("k", "v", "count"), read_ring(ops, ring), strict=True):
            yield f"ring.{name} of {width}", part


def convolutions(ops: Cuda) -> Iterator[Result]:
    for stride, channels, biased in ((1, 130, True), (2, 5, False)):
        tail, x = (ops.upload(normal(2, items, channels)) for items in (3 - stride, 6))
        out, bias = ops.zeros((2, 6 // stride, 9)), ops.upload(normal(9)) if biased else None
        ops.conv1d(out, tail, x, ops.upload(normal(9, channels, 3)), bias, stride, ops.upload(words(1, 0)))
        yield f"conv1d by {stride}", read(ops, out)
        yield f"tail by {stride}", read(ops, tail)


def points(ops: Cuda) -> Iterator[Result]:
    for count in (1, 1003, 4096):
        x, y = (ops.upload(normal(count, seed=seed)) for seed in (0, 1))
        for name, operands in (("add", (x, y)), ("gelu", (x,)), ("elu", (x,)), ("silu_mul", (x, y))):
            out = ops.zeros((count,))
            getattr(ops, name)(out, *operands)
            yield f"{name} of {count}", read(ops, out)


def choices(ops: Cuda) -> Iterator[Result]:
    for columns in (3, 9001):
        x, on = ops.upload(np.round(normal(3, columns))), ops.upload(words(1, 0, 1))
        best, picked, run = ops.zeros((3,), "i32"), ops.zeros((3,), "i32"), ops.upload(words(4, 5, 6))
        ops.argmax(best, x)
        ops.pick(picked, x, run, 1, 3, 0.5, 4.0, on)
        for name, result in (("argmax", best), ("pick", picked), ("run", run)):
            yield f"{name} of {columns}", read(ops, result)
    for rows, columns in ((2, 3), (301, 40)):
        out = ops.zeros((5,), "i32")
        ops.nearest(out, ops.upload(normal(5, columns)), ops.upload(normal(rows, columns, seed=1)))
        yield f"nearest of {rows}", read(ops, out)
    token = ops.upload(words(9, 9, 9))
    operands = words(5, 6, 7), words(1, 2), words(0, 2, 1), words(1, 1, 0)
    ops.advance(token, *(ops.upload(operand) for operand in operands))
    yield "advance", read(ops, token)


def layers(ops: Cuda) -> Iterator[Result]:
    held = {
        name: weight(ops, normal(rows, columns, seed=seed) / 8, "q4_0")[0]
        for seed, (name, rows, columns) in enumerate((
            ("q", HEADS * HEAD, WIDTH), ("k", KEPT * HEAD, WIDTH), ("v", KEPT * HEAD, WIDTH),
            ("o", WIDTH, HEADS * HEAD), ("gate", 100, WIDTH), ("up", 100, WIDTH), ("table", 333, WIDTH),
        ))
    }  # fmt: skip
    for rows in (2, 8, 12, 24, 48):
        yield from layer(ops, rows, held)
    narrow, _ = weight(ops, normal(OUTPUTS, COLUMNS), "q4_0")  # its columns are cut in parts
    x, h, y = ops.upload(normal(6, OUTPUTS)), ops.upload(normal(6, COLUMNS)), ops.zeros((6, OUTPUTS))
    fused.linear_residual(ops, x, h, narrow, y=y)
    yield "residual of few outputs", read(ops, x)


def layer(ops: Cuda, lanes: int, held: dict[str, Any]) -> Iterator[Result]:
    gain, bias = ops.upload(normal(WIDTH)), ops.upload(normal(HEADS * HEAD))
    x, active = ops.upload(normal(lanes, 1, WIDTH)), ops.upload(np.arange(lanes, dtype=np.int32) % 3)
    ring, q, h = ops.ring(lanes, KEPT, 4, HEAD), ops.zeros((lanes, 1, HEADS, HEAD)), ops.zeros(x.shape)
    k, v = (ops.zeros((lanes, 1, KEPT, HEAD)) for _ in range(2))
    w = fused.QkvWeights(gain, held["q"], held["k"], held["v"], q_bias=bias)
    fused.norm_qkv_rope_append(ops, q, ring, x, w, active, eps=EPS, theta=THETA, h=h, k=k, v=v)
    yield f"q of {lanes}", read(ops, q)
    yield f"k of {lanes}", read_ring(ops, ring)[0]
    scratch = {"mix": ops.zeros(q.shape), "y": ops.zeros(x.shape)}
    fused.attend_linear_residual(ops, x, q, ring, 4, held["o"], **scratch)
    yield f"attended of {lanes}", read(ops, x)
    fused.linear_residual(ops, x, q.reshape(lanes, 1, -1), held["o"], gain, y=h)
    yield f"residual of {lanes}", read(ops, x)
    out, up = (ops.zeros((lanes, 1, 100)) for _ in range(2))
    for scale in (None, gain):
        gated = fused.GateUpWeights(gain, held["gate"], held["up"], scale)
        fused.gate_up_silu(ops, out, x, gated, eps=EPS, h=h, up=up)
        yield f"gate of {lanes}{', scaled' if scale is gain else ''}", read(ops, out)
    picked, run = ops.zeros((lanes,), "i32"), ops.upload(np.arange(lanes, dtype=np.int32))
    flat, scratch = x.reshape(lanes, WIDTH), {"h": h.reshape(lanes, WIDTH), "logits": ops.zeros((lanes, 333))}
    fused.norm_head_pick(
        ops, picked, flat, gain, held["table"], run, 1, 3, 0.5, 4.0, active, eps=EPS, **scratch
    )
    yield f"picked of {lanes}", np.where(read(ops, active) > 0, read(ops, picked), 0)
    yield f"run of {lanes}", read(ops, run)


def probes(ops: Cuda) -> Iterator[Result]:
    device = ops.device
    words_, other = (device.empty((20_000,), np.uint32) for _ in range(2))
    found = device.empty((probe.read_blocks(device),), np.uint32)
    probe.random(words_, 3, device=device)
    probe.copy(other, words_, device=device)
    probe.read(found, words_, device=device)
    for arguments in probe.EMPTY:
        probe.nothing(arguments, device=device)()
    for name, result in (("random", words_), ("copy", other), ("read", found)):
        yield name, read(ops, result)


if __name__ == "__main__":
    for walked in backends():
        for step_name, outcome in tour(walked):
            print(step_name, outcome.shape, flush=True)
