"""Arrays for the op suite, weights in every kind, and the tolerances with their reasons."""

from __future__ import annotations

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
F32 = 1e-6  # f32 throughout, or as many halves as make up an f32
TWO_TERMS = 5e-5  # 8-bit x as two terms, hi + lo / 254
HALF = 5e-4  # x or the weights of a softmax rounded to half, 11 bits, and sums in f32
BF16 = 2.5e-3  # x rounded to bf16, 8 bits
BYTES = 8e-3  # x as bytes, see `bytes_limit`: of normal x 5.3e-3, by chance up to 6e-3
UNLUCKY = 1.5  # times the typical error of bytes

# What a ring may lose of a key or value.
HALF_STEP = 2.0**-11  # a half rounds by this much of it at most,
HALF_LEAST = 2.0**-25  # or by this where it is below 2^-14
BYTE_STEP = 1.001 / 254  # half a step of the largest of its row; the step itself is a rounded half

FEW, EXACT, FRAGMENTS, DP4A = 8, 64, 128, 4  # rows of x up to which cuda takes its finer ways
CHUNK = 16  # queries of a key head from which it takes tensor cores, where heads are 64 or 128 wide


def product_limit(ops: Backend, kind: str, rows: int, x: np.ndarray | None = None) -> float:
    """The class of `linear` with a weight of `kind` and so many rows of x, which is normal unless given."""
    if ops.name == "cpu":
        if kind not in ("q4_0", "q8_0") or ops.activations == "f32":
            return F32
        return BYTES if x is None else bytes_limit(x)
    if ops.name != "cuda" or kind == "f32":
        return F32
    if kind == "q4_0":
        if ops.layout == "fragment":
            return F32 if rows <= FRAGMENTS else HALF
        return TWO_TERMS if rows <= DP4A else HALF
    if kind == "q8_0":
        return F32 if rows <= FEW else HALF
    return F32 if rows <= EXACT else {"f16": HALF, "bf16": BF16}[kind]


def bytes_limit(x: np.ndarray) -> float:
    """Of x [..., M] as bytes: each off by a step / sqrt(12), rms; a step is a 127th of the largest of 32."""
    steps = np.abs(x).reshape(-1, 32).max(axis=1) / 127
    return UNLUCKY * float(np.sqrt(np.mean(steps**2) / 12 / np.mean(x**2)))


def attend_limit(ops: Backend, q: np.ndarray, heads: int) -> float:
    """The class of `attend` with q [B, T, H, D] over a ring of so many key heads."""
    _, items, queries, width = q.shape
    many = items * queries // heads >= CHUNK and width in (64, 128)
    return HALF if ops.name == "cuda" and many else F32


def assert_within(actual, expected, limit: float, *, what: str, size=None) -> None:
    """Close in every element where arithmetic is f32; in a class with fewer bits, close by the norm.

    size : of products before their terms cancel, for results of any number, also of one; the norm of a few
        errors may then be larger by chance
    """
    if limit <= F32:
        assert_close(actual, expected, rtol=RTOL_POINT, atol=ATOL_DOT, what=what)
        return
    got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    error, whole = np.linalg.norm(got - want), np.linalg.norm(want if size is None else size)
    limit *= 1 if size is None else 1 + 4 / np.sqrt(got.size)
    assert error <= limit * whole, f"{what}: error {error:.3g} by norm, at most {limit:g} of {whole:.3g}"


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


def assert_kept(
    ops: Backend, actual: np.ndarray, given: np.ndarray, *, what: str, slack: float = 0
) -> None:
    """Keys or values [..., D] read from a ring are those appended, as far as its storage goes.

    slack : what those appended may be off by themselves
    """
    size, allowed = np.abs(given), np.full(given.shape, slack, np.float64)
    if getattr(ops, "kv", "") == "f16":
        allowed += np.maximum(HALF_STEP * size, HALF_LEAST)
    if getattr(ops, "kv", "") == "q8":
        allowed += BYTE_STEP * size.max(axis=-1, keepdims=True)
    over = np.argwhere(~(np.abs(actual.astype(np.float64) - given) <= allowed))
    assert not len(over), f"{what}: {len(over)} lost more than a ring may, first at {over[0].tolist()}"


def weight(ops: Backend, dense: np.ndarray, kind: str):
    """`dense` adopted in `kind`, and the f32 values that survive the packing."""
    raw = quant.pack(dense, kind)
    return ops.adopt(raw.reshape(-1), kind, dense.shape), quant.unpack(raw, kind, dense.shape)
