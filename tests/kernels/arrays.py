"""Arrays for the op suite, weights in every kind, and the tolerances with their reasons."""

from __future__ import annotations

import numpy as np

from kernels import Backend, quant

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")
ATOL_DOT = 5e-5  # f32 sums of up to 1024 unit products: partial sums reach 100, whose last bit is 8e-6
RTOL_POINT = 2e-6  # a handful of f32 roundings
ATOL_POINT = 1e-6  # near zeros of gelu and elu, where the result is a small difference of ones
ATOL_TURN = 1e-6  # f32 cosines of float64 angles, times values of a few units


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def words(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def read(ops: Backend, tensor) -> np.ndarray:
    return ops.fetch(tensor).wait()


def weight(ops: Backend, dense: np.ndarray, kind: str):
    """`dense` adopted in `kind`, and the f32 values that survive the packing."""
    raw = quant.pack(dense, kind)
    return ops.adopt(raw.reshape(-1), kind, dense.shape), quant.unpack(raw, kind, dense.shape)
