"""Host memory that a GPU copies from and to by itself, used again once the copy is over."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

SMALLEST = 512  # bytes; what CuPy rounds up to as well


class Block:
    """Pinned memory, and the event behind the last copy from it or to it.

    cuda : the module cupy.cuda
    """

    __slots__ = ("_bytes", "event")

    def __init__(self, cuda: Any, size: int):
        self._bytes = np.frombuffer(cuda.alloc_pinned_memory(size), np.uint8, size)
        self.event = cuda.Event(disable_timing=True)

    @property
    def size(self) -> int:
        return len(self._bytes)

    def view(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The start of it as an array."""
        return self._bytes[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


class Pinned:
    """Blocks of powers of two, handed out oldest first: a row that is still being copied ends the search."""

    def __init__(self, cuda: Any):
        self._cuda = cuda
        self._given: dict[int, deque[Block]] = {}

    def take(self, count: int) -> Block:
        """At least `count` bytes that nothing is being copied from or to."""
        size = 1 << max(0, max(count, SMALLEST) - 1).bit_length()
        given = self._given.setdefault(size, deque())
        if given and given[0].event.done:
            return given.popleft()
        return Block(self._cuda, size)

    def give(self, block: Block) -> None:
        """`block` back, its last copy perhaps still under way."""
        self._given[block.size].append(block)
