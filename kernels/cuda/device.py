"""What the launchers ask of a GPU: memory, kernels, one stream, recording.

`Card` in card.py answers with CuPy; nothing else in this folder knows CuPy. Arrays are whatever the device
hands out: they have `shape`, `dtype`, `reshape`, slices of leading rows, and are C-contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from kernels.tensor import Pending

NULL = np.uintp(0)  # the argument for a pointer parameter that has nothing to point at


class Kernel(Protocol):
    """One `extern "C"` function of a .cu file."""

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        """Queue a launch.

        args : arrays of the device, and NumPy scalars exactly as wide as their parameters; NULL for no array
        shared_mem : bytes of dynamic shared memory
        """
        ...


class Device(Protocol):
    """One GPU with one stream; all that is queued runs in order.

    name : as the driver calls it
    capability : (9, 0) is Hopper
    processors : streaming multiprocessors
    shared_bytes : dynamic shared memory that one block may ask for
    """

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory with no content yet, aligned to 256 bytes; `dtype` is one of NumPy's."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any: ...

    def clear(self, array: Any) -> None:
        """Zero all of `array`."""
        ...

    def upload(self, array: np.ndarray, out: Any | None = None) -> Any:
        """Any host array, any dtype; `array` may be reused at once."""
        ...

    def fetch(self, array: Any) -> Pending:
        """Start copying to pinned host memory; as of now, whatever is queued later."""
        ...

    def copy(self, array: Any, out: Any | None = None) -> Any: ...

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Memory that outlives its use; the next call with this name may give the same. See `Scratch`."""
        ...

    def kernel(self, file: str, name: str) -> Kernel:
        """The function `name` of `file`.cu, compiled when first asked for."""
        ...

    def gemm(self, out: Any, x: Any, w: Any, kind: str) -> None:
        """out f32 [R, N] = x [R, M] @ w [N, M]^T by cuBLAS, with f32 sums.

        kind : f32, f16, or bf16 (then x and w hold the bits as u16); of both x and w
        """
        ...

    def record(self, fn: Callable[[], None]) -> Callable[[], None]:
        """A replay of what `fn` queues; `fn` ran once before, so that nothing is compiled or allocated."""
        ...

    def free_bytes(self) -> int:
        """Memory that could still be taken."""
        ...

    def trim(self) -> None:
        """Give back to the driver what nobody holds: other libraries of this process cannot take it."""
        ...

    def timed(self, fn: Callable[[], None]) -> float:
        """Seconds the device spends on what `fn` queues, by its own clock; waits for the end."""
        ...


class Scratch:
    """Named work memory that grows and is never given back.

    What a recorded step points at stays where it was: a buffer that became too small is kept beside the
    larger one. Sizes are rounded up to powers of two, so all of them together are less than twice the
    largest. A new buffer is zero: counters that their kernel leaves at zero need no clearing before a launch.

    zeros : `Device.zeros`
    """

    def __init__(self, zeros: Callable[[tuple[int, ...], Any], Any]):
        self._zeros = zeros
        self._kept: dict[str, list[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """`shape` of `dtype` at the start of the buffer `name`: as its last user left it, at first zero."""
        need = math.prod(shape) * np.dtype(dtype).itemsize
        kept = self._kept.setdefault(name, [])
        if not kept or kept[-1].shape[0] < need:
            kept.append(self._zeros((1 << max(8, (need - 1).bit_length()),), np.uint8))
        return kept[-1][:need].view(dtype).reshape(shape)
