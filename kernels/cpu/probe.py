"""What this processor can read, to hold the speed of kernels against; nothing else asks for it."""

from __future__ import annotations

import numpy as np

from kernels.cpu.plan import Steps
from kernels.errors import ShapeError

PART_BYTES = 1 << 18


def read(memory: np.ndarray, *, steps: Steps) -> None:
    """Read `memory`, bytes in a multiple of PART_BYTES, and do nothing with it."""
    if memory.nbytes % PART_BYTES:
        raise ShapeError(f"read: {memory.nbytes} bytes are not a multiple of {PART_BYTES}")
    result = steps.room("read", 64)
    place, size = steps.at(memory, memory.dtype), memory.nbytes
    steps.add("read", size // PART_BYTES, place, PART_BYTES, result, cost=size)
