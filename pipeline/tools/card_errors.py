"""How far a card's products and attention are from float64, on weights of a real width."""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels import quant
from kernels.cuda.attention import KV_Q8_ERROR
from kernels.cuda.backend import Cuda, Kv
from kernels.cuda.linear import DP4A_ROWS, FRAGMENT_ROWS
from pipeline.tools.card_ops import SEED, random_blocks
from pipeline.tools.card_run import KV, LAYOUTS, CardRun

OUTPUTS, POSITIONS = 256, 300
EXACT, HALF = 1e-6, 5e-4  # f32 sums; values as f16, or in two terms of 8 bits


def measure_errors(run: CardRun) -> None:
    """Products in each layout with few and many rows, attention over each kind of ring."""
    run.begin("errors against float64")
    for layout in LAYOUTS:
        ops = run.variant(layout=layout)
        for rows in (1, 4, 16, 64, FRAGMENT_ROWS + 1):
            if layout == "fragment" or rows <= DP4A_ROWS:
                allowed = EXACT if rows <= FRAGMENT_ROWS and layout == "fragment" else HALF
                error = partial(product_error, ops, rows, run.sweep.config.decoder.dim)
                run.check(f"linear Q4_0, {layout}, {rows} row{'s' * (rows > 1)}", allowed, error)
    for kv in KV:
        allowed = HALF if kv == "f16" else KV_Q8_ERROR
        run.check(f"attend, keys and values as {kv}", allowed, partial(attention_error, run, kv))


def product_error(ops: Cuda, rows: int, inputs: int) -> float:
    """Relative to the float64 product of the same stored weights."""
    raw = random_blocks(quant.nbytes("q4_0", (OUTPUTS, inputs)))
    x = np.random.default_rng(SEED).standard_normal((rows, inputs), np.float32)
    out = ops.zeros((rows, OUTPUTS))
    ops.linear(out, ops.upload(x), ops.adopt(raw, "q4_0", (OUTPUTS, inputs)))
    dense = quant.unpack(raw, "q4_0", (OUTPUTS, inputs)).astype(np.float64)
    return relative(ops.fetch(out).wait(), x @ dense.T)


def attention_error(run: CardRun, kv: Kv) -> float:
    """One decoder query over POSITIONS keys that were not rounded, in float64."""
    ops, tower = run.variant(kv=kv), run.sweep.config.decoder
    random = np.random.default_rng(SEED)
    k, v = (random.standard_normal((POSITIONS, tower.kv_heads, tower.head_dim), np.float32) for _ in range(2))
    q = random.standard_normal((tower.heads, tower.head_dim), np.float32)
    ring = ops.ring(1, tower.kv_heads, POSITIONS, tower.head_dim)
    ops.append(ring, ops.upload(k[None]), ops.upload(v[None]), ops.upload(np.ones(1, np.int32)))
    out = ops.zeros((1, 1, tower.heads, tower.head_dim))
    ops.attend(out, ops.upload(q[None, None]), ring, POSITIONS)
    shared = tower.heads // tower.kv_heads
    keys, values = (np.repeat(array.astype(np.float64), shared, axis=1) for array in (k, v))
    scores = np.exp(np.einsum("hd,phd->hp", q, keys) / np.sqrt(tower.head_dim))
    expected = np.einsum("hp,phd->hd", scores / scores.sum(axis=1, keepdims=True), values)
    return relative(ops.fetch(out).wait()[0, 0], expected)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
