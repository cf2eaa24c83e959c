"""Arrays for the op suite, weights in every kind, and the tolerances with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels import Backend, quant
from kernels.tensor import Ring
from tests.compare import assert_close

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")
ATOL_DOT = 5e-5  # f32 sums of up to 1024 unit products: partial sums reach 100, whose last bit is 8e-6
RTOL_POINT = 2e-6  # a handful of f32 roundings
ATOL_POINT = 1e-6  # near zeros of gelu and elu, where the result is a small difference of ones
ATOL_TURN = 1e-6  # f32 cosines of float64 angles, times values of a few units

# Classes of arithmetic: norm of the error by that of the result, against float64 on the same stored values.
F32 = 1e-6  # f32 throughout, or halves of which two make up an f32
HALF = 5e-4  # x or softmax weights rounded to half, 11 bits, and sums in f32
EIGHT_BITS = 1.5e-2  # keys and values in 255 steps of the largest of their row

HALF_STEP = 2.0**-11  # a half rounds by this much of a value at most,
HALF_LEAST = 2.0**-25  # or by this where it is below 2^-14
BYTE_STEP = 1.001 / 254  # half a step of the largest of a row; the step itself is a rounded half


@dataclass(frozen=True, slots=True)
class Precision:
    """The class of each way that a backend takes.

    few, many : matrix products of up to 64 rows of x, and of more
    attend, attend_many : attention of up to 4 queries that share a key head, and of more
    ring : what a key or value may lose when a ring keeps it, of itself and of the largest of its row
    """

    few: float = F32
    many: float = F32
    attend: float = F32
    attend_many: float = F32
    ring: tuple[float, float] = (0, 0)


def precision(ops: Backend) -> Precision:
    """Of the backend and its options."""
    if ops.name != "cuda":
        return Precision()
    return Precision(
        few=HALF if ops.layout == "rows" else F32,
        many=HALF,
        attend_many=HALF,
        ring=(0, BYTE_STEP) if ops.kv == "q8" else (HALF_STEP, 0),
    )


def assert_within(actual, expected, limit: float, *, what: str) -> None:
    """Close in every element where arithmetic is f32; in a class with fewer bits, close by the norm."""
    if limit <= F32:
        assert_close(actual, expected, rtol=RTOL_POINT, atol=ATOL_DOT, what=what)
        return
    got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    error, size = np.linalg.norm(got - want), np.linalg.norm(want)
    assert error <= limit * size, f"{what}: error {error:.3g} by norm, at most {limit:g} of {size:.3g}"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def words(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def read(ops: Backend, tensor) -> np.ndarray:
    return ops.fetch(tensor).wait()


def read_ring(ops: Backend, ring: Ring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values [B, K, C, D] as the f32 that the ring stands for, and the counts [B]."""
    k, v = (read(ops, part).astype(np.float32) for part in (ring.k, ring.v))
    if ring.k_scale is not None:
        k *= read(ops, ring.k_scale).astype(np.float32)[..., None]
        v *= read(ops, ring.v_scale).astype(np.float32)[..., None]
    return k, v, read(ops, ring.count)


def assert_kept(ops: Backend, actual: np.ndarray, given: np.ndarray, *, what: str) -> None:
    """Keys or values [..., D] read from a ring are those that were appended, as far as its storage goes."""
    each, largest = precision(ops).ring
    size = np.abs(given)
    allowed = each * np.maximum(size, HALF_LEAST / HALF_STEP) + largest * size.max(axis=-1, keepdims=True)
    lost = np.abs(actual.astype(np.float64) - given)
    over = np.argwhere(~(lost <= allowed))
    assert not len(over), f"{what}: {len(over)} lost more than a ring may, first at {over[0].tolist()}"


def weight(ops: Backend, dense: np.ndarray, kind: str):
    """`dense` adopted in `kind`, and the f32 values that survive the packing."""
    raw = quant.pack(dense, kind)
    return ops.adopt(raw.reshape(-1), kind, dense.shape), quant.unpack(raw, kind, dense.shape)
