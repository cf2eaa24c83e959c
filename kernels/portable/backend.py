"""NumPy f32: memory verbs, and the seven op files put together. Runs wherever NumPy does."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from kernels import quant
from kernels.errors import KernelError, ShapeError
from kernels.portable.attention import append, attend
from kernels.portable.conv import conv1d
from kernels.portable.linear import embed, linear
from kernels.portable.norm import layer_norm, rms_norm
from kernels.portable.pointwise import add, elu, gelu, silu_mul
from kernels.portable.rope import rope, turns
from kernels.portable.select import advance, argmax, nearest, pick
from kernels.tensor import Pending, QuantTensor, Ring

DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32}
RING_VALUE_BYTES = 4  # keys and values are f32
TURNS_KEPT = 8  # sets of RoPE angles remembered: every layer of a step asks for the same one


class Portable:
    """The backend that runs anywhere NumPy does.

    widen_bytes : matrices are widened to f32 once, at `adopt`, while together they stay within this; later
        ones keep their stored size and are widened tile by tile in each product. So a small model runs at
        f32 speed and a large one keeps its size. The two agree to the last bits of a dot product.
    """

    name = "portable"

    def __init__(self, widen_bytes: int = 256 << 20):
        self._widen_left = widen_bytes
        self._turns = lru_cache(maxsize=TURNS_KEPT)(turns)

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> np.ndarray:
        if dtype not in DTYPES:
            raise KernelError(f"zeros: no dtype is called {dtype!r}; there are {', '.join(DTYPES)}")
        return np.zeros(shape, DTYPES[dtype])

    def upload(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if array.dtype not in (np.float32, np.int32):
            raise KernelError(f"upload: expected f32 or i32, got {array.dtype}; convert it first")
        if out is None:
            return np.array(array, order="C")
        if out.shape != array.shape or out.dtype != array.dtype:
            raise ShapeError(f"upload: {array.dtype} {array.shape} does not fit {out.dtype} {out.shape}")
        out[...] = array
        return out

    def adopt(self, raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray | QuantTensor:
        """f32 is viewed where it is aligned; a matrix past the budget stays stored; the rest is widened.

        Gains, biases and convolutions are always widened: they are small, and their ops read f32.
        """
        expected = quant.nbytes(kind, shape)
        if raw.nbytes != expected:
            raise ShapeError(f"adopt: {kind} {shape} takes {expected} bytes, but {raw.nbytes} came")
        raw = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        if kind == "f32":
            return np.require(raw.view("<f4").reshape(shape), np.float32, ("C", "A"))
        wide = 4 * math.prod(shape)
        if len(shape) == 2 and wide > self._widen_left:
            return QuantTensor(kind, shape, (raw.reshape(shape[0], -1),))
        if len(shape) == 2:
            self._widen_left -= wide
        return quant.unpack(raw, kind, shape)

    def fetch(self, tensor: np.ndarray) -> Pending:
        taken = tensor.copy()
        return Pending(lambda: taken)

    def copy(self, tensor: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return tensor.copy()
        if out.shape != tensor.shape or out.dtype != tensor.dtype:
            raise ShapeError(f"copy: {tensor.dtype} {tensor.shape} does not fit {out.dtype} {out.shape}")
        out[...] = tensor
        return out

    def clear(self, tensor: np.ndarray, lane: int) -> None:
        tensor[lane] = 0

    def ring(self, lanes: int, heads: int, capacity: int, width: int) -> Ring:
        shape = (lanes, heads, capacity, width)
        return Ring(self.zeros(shape), self.zeros(shape), self.zeros((lanes,), "i32"))

    def ring_bytes(self, heads: int, capacity: int, width: int) -> int:
        return 2 * RING_VALUE_BYTES * heads * capacity * width

    def free_bytes(self) -> int | None:
        return None

    def capture(self, fn: Callable[[], None]) -> Callable[[], None]:
        """`fn` itself: there is nothing to record."""
        return fn

    linear = staticmethod(linear)
    embed = staticmethod(embed)

    rms_norm = staticmethod(rms_norm)
    layer_norm = staticmethod(layer_norm)

    def rope(self, x: np.ndarray, position: np.ndarray, theta: float) -> None:
        rope(x, position, theta, self._turns)

    append = staticmethod(append)
    attend = staticmethod(attend)

    conv1d = staticmethod(conv1d)

    add = staticmethod(add)
    gelu = staticmethod(gelu)
    elu = staticmethod(elu)
    silu_mul = staticmethod(silu_mul)

    argmax = staticmethod(argmax)
    nearest = staticmethod(nearest)
    pick = staticmethod(pick)
    advance = staticmethod(advance)
