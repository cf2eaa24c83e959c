"""How weights are stored: f32, f16, bf16 and the blocks Q8_0 and Q4_0, packed and unpacked.

This is the only file that knows the byte order of a block. Rounding is ggml's reference
(`quantize_row_q4_0_ref`, `quantize_row_q8_0_ref`), so packed bytes equal those of the `gguf` package.
Temporaries stay under a few MiB whatever the size of the tensor.

    Q8_0, 34 bytes for 32 weights     f16 scale, then 32 signed bytes          w = scale * q
    Q4_0, 18 bytes for 32 weights     f16 scale, then 16 bytes of two nibbles  w = scale * (q - 8)
                                      byte j holds weight j (low nibble) and weight j + 16 (high nibble)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from kernels.errors import KernelError, ShapeError

BLOCK_WEIGHTS = 32
Q8_BLOCK = np.dtype([("scale", "<f2"), ("q", "i1", (BLOCK_WEIGHTS,))])
Q4_BLOCK = np.dtype([("scale", "<f2"), ("front", "<u8"), ("back", "<u8")])  # the 16 nibble bytes as two words
assert Q8_BLOCK.itemsize == 34, "GGUF Q8_0 blocks are 34 bytes; readers index by this"
assert Q4_BLOCK.itemsize == 18, "GGUF Q4_0 blocks are 18 bytes; readers index by this"

_CHUNK = 1 << 17  # weights converted at a time: half a MiB of f32, at home in an L2 cache
_F16_BIAS = np.float32(2.0**112)  # exponents count from 15 in f16 and from 127 in f32
_LOW_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_NIBBLE_BITS = np.uint64(4)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of one stored row of `columns` weights.

    Raises
    ------
    ShapeError   for an unknown kind, or a quantised row that is not whole blocks
    """
    codec = _codec(kind)
    if columns < 0 or columns % codec.weights:
        raise ShapeError(f"{kind}: a row is whole blocks of {codec.weights} weights, but it has {columns}")
    return columns // codec.weights * codec.stored.itemsize


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a stored tensor; ShapeError as in `row_bytes`."""
    *rows, columns = shape or (1,)
    return math.prod(rows) * row_bytes(kind, columns)


def pack(array: np.ndarray, kind: str) -> np.ndarray:
    """f32 [..., M] as stored bytes, uint8 [..., row_bytes(kind, M)].

    f16 and bf16 round to nearest even. What f16 cannot carry, as a value or as the scale of a block (its
    largest magnitude / 8 for q4_0, / 127 for q8_0), is refused: NaN, infinity, anything that rounds beyond
    65504. bf16 and f32 carry everything.

    Raises
    ------
    ShapeError    as in `row_bytes`
    KernelError   for a value the kind cannot carry
    """
    values = np.ascontiguousarray(array, np.float32)
    *rows, columns = values.shape or (1,)
    width = row_bytes(kind, columns)
    codec = _codec(kind)
    blocks = values.reshape(-1, codec.weights)
    stored = np.empty(len(blocks), codec.stored)
    for start in range(0, len(blocks), codec.chunk):
        part = slice(start, start + codec.chunk)
        codec.encode(blocks[part], stored[part])
    return stored.view(np.uint8).reshape(*rows, width)


def unpack(
    raw: np.ndarray, kind: str, shape: tuple[int, ...], out: np.ndarray | None = None
) -> np.ndarray:
    """Stored bytes (uint8, row-major) as f32 of `shape`, into `out` (contiguous f32) where given.

    Raises
    ------
    ShapeError   as in `row_bytes`, or when `raw` is longer or shorter than `shape` needs
    """
    if raw.nbytes != nbytes(kind, shape):
        raise ShapeError(f"{kind} {list(shape)} takes {nbytes(kind, shape)} bytes, but {raw.nbytes} came")
    codec = _codec(kind)
    out = np.empty(shape, np.float32) if out is None else out
    assert out.flags.c_contiguous, "unpack writes through a flat view of out"
    stored = np.ascontiguousarray(raw).reshape(-1).view(np.uint8).view(codec.stored)
    blocks = out.reshape(-1, codec.weights)
    for start in range(0, len(blocks), codec.chunk):
        part = slice(start, start + codec.chunk)
        codec.decode(stored[part], blocks[part])
    return out


def _encode_f32(values: np.ndarray, stored: np.ndarray) -> None:
    stored[:] = values[:, 0]


def _decode_f32(stored: np.ndarray, out: np.ndarray) -> None:
    out[:, 0] = stored


def _encode_f16(values: np.ndarray, stored: np.ndarray) -> None:
    stored[:] = _as_f16(values[:, 0], "f16").view(np.uint16)


def _decode_f16(stored: np.ndarray, out: np.ndarray) -> None:
    """Magnitudes moved into place, exponents re-biased: a third of the time of NumPy's own cast."""
    magnitude = (stored & np.uint16(0x7FFF)).astype(np.uint32)
    bits = out[:, 0].view(np.uint32)
    np.left_shift(magnitude, np.uint32(13), out=bits)
    np.multiply(out, _F16_BIAS, out=out)  # exact, and what was subnormal is normal now
    special = magnitude >= 0x7C00
    if special.any():
        bits[special] = magnitude[special] << np.uint32(13) | np.uint32(0x7F800000)  # infinity and NaN
    bits |= (stored & np.uint16(0x8000)).astype(np.uint32) << np.uint32(16)


def _encode_bf16(values: np.ndarray, stored: np.ndarray) -> None:
    """The upper half of an f32, to nearest even; a NaN is made quiet lest its payload round to infinity."""
    bits = values[:, 0].view(np.uint32)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    stored[:] = np.where(np.isnan(values[:, 0]), quiet, rounded)


def _decode_bf16(stored: np.ndarray, out: np.ndarray) -> None:
    bits = out[:, 0].view(np.uint32)
    bits[:] = stored
    np.left_shift(bits, np.uint32(16), out=bits)


def _encode_q8_0(values: np.ndarray, stored: np.ndarray) -> None:
    scale = np.abs(values).max(axis=1) / np.float32(127)
    stored["scale"] = _as_f16(scale, "q8_0")
    steps = values * _reciprocal(scale)[:, None]
    size = np.abs(steps)
    whole = np.floor(size)
    whole += size - whole >= np.float32(0.5)  # halves away from zero, as C's roundf
    stored["q"] = np.copysign(whole, steps)


def _decode_q8_0(stored: np.ndarray, out: np.ndarray) -> None:
    out[:] = stored["q"]
    np.multiply(out, stored["scale"].astype(np.float32)[:, None], out=out)


def _encode_q4_0(values: np.ndarray, stored: np.ndarray) -> None:
    """The value of largest magnitude, the first on ties, is stored as exactly -8 steps."""
    peak = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = peak / np.float32(-8)
    stored["scale"] = _as_f16(scale, "q4_0")
    steps = values * _reciprocal(scale)[:, None]
    steps += np.float32(8.5)
    nibbles = np.minimum(steps.astype(np.uint8), 15)  # the cast drops the fraction; nothing here is negative
    halves = nibbles[:, :16] | nibbles[:, 16:] << 4
    words = halves.view("<u8")
    stored["front"], stored["back"] = words[:, 0], words[:, 1]


def _decode_q4_0(stored: np.ndarray, out: np.ndarray) -> None:
    words = np.empty((len(stored), 4), "<u8")  # a block's 32 nibbles, one per byte, in order of weight
    words[:, 0], words[:, 1] = stored["front"], stored["back"]
    np.right_shift(stored["front"], _NIBBLE_BITS, out=words[:, 2])
    np.right_shift(stored["back"], _NIBBLE_BITS, out=words[:, 3])
    np.bitwise_and(words, _LOW_NIBBLES, out=words)
    steps = words.view(np.int8)
    np.subtract(steps, 8, out=steps)
    out[:] = steps
    np.multiply(out, stored["scale"].astype(np.float32)[:, None], out=out)


def _reciprocal(scale: np.ndarray) -> np.ndarray:
    """1 / scale, or 0 where that overflows: under 2.9e-39 the stored scale is 0, and so is every weight."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


def _as_f16(values: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        bad = float(values[~np.isfinite(halves)][0])
        part = "value" if kind == "f16" else "block scale"
        raise KernelError(f"{kind}: {part} {bad!r} exceeds f16 (65504); store this tensor as bf16 or f32")
    return halves


class _Codec:
    """One kind: `weights` of them are one `stored` item, and `chunk` items are converted at a time."""

    __slots__ = ("chunk", "decode", "encode", "stored", "weights")

    def __init__(
        self, stored: np.dtype, weights: int,
        encode: Callable[[np.ndarray, np.ndarray], None], decode: Callable[[np.ndarray, np.ndarray], None],
    ):
        self.stored, self.weights, self.encode, self.decode = stored, weights, encode, decode
        self.chunk = _CHUNK // weights


_CODECS = MappingProxyType({
    "f32": _Codec(np.dtype("<f4"), 1, _encode_f32, _decode_f32),
    "f16": _Codec(np.dtype("<u2"), 1, _encode_f16, _decode_f16),
    "bf16": _Codec(np.dtype("<u2"), 1, _encode_bf16, _decode_bf16),
    "q8_0": _Codec(Q8_BLOCK, BLOCK_WEIGHTS, _encode_q8_0, _decode_q8_0),
    "q4_0": _Codec(Q4_BLOCK, BLOCK_WEIGHTS, _encode_q4_0, _decode_q4_0),
})


def _codec(kind: str) -> _Codec:
    if kind not in _CODECS:
        raise ShapeError(f"no weight is stored as {kind!r}; there are {', '.join(_CODECS)}")
    return _CODECS[kind]
