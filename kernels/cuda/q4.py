"""How the Q4_0 product of q4.cuh is launched: which kernel, how many blocks, and which warps share a tile.

Nothing here has been timed on a GPU yet; the reasons are those of the design, in bytes and registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.device import Device

TILE, STEP = 16, 64  # rows and columns of a fragment
STAGED_ROWS = 4  # of x, that a block holds itself: 4 * 9216 columns are 147 KB of shared memory
CAPACITIES = (8, 16, 32, 64)  # rows of x that one launch takes behind `split`
MOST_ROWS = CAPACITIES[-1]

STAGED_WARPS = 16  # two such blocks are the 1024 threads of a processor that keep 48 KB of loads in flight
STAGED_BLOCKS = 2
SPLIT_WARPS = 4  # more columns take more registers: 3 to 5 such blocks fit a processor
SPLIT_FILL = 8  # warps of a processor that must have work before a tile is left to one of them


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch.

    capacity : rows of x the kernel is made for; STAGED_ROWS where every block stages them itself
    share : warps of a block that take the columns of one tile in turns
    shared : bytes of dynamic shared memory
    """

    capacity: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    share: np.int32
    shared: int


def plan(rows: int, tiles: int, columns: int, *, device: Device, matrices: int = 1) -> Plan:
    """For 1 to MOST_ROWS rows of x, and so many tiles of a matrix, or of `matrices` side by side."""
    steps = -(-columns // STEP)
    sums = 4 * TILE * rows * matrices  # bytes of a warp
    staged = 4 * STEP * rows * steps + 16 + sums * STAGED_WARPS
    if rows <= STAGED_ROWS and staged <= device.shared_bytes:
        fill = 2 * STAGED_WARPS * device.processors // tiles  # as many as are there at once
        share = _power_of_two(min(fill, steps, STAGED_WARPS))
        blocks = min(-(-tiles * share // STAGED_WARPS), STAGED_BLOCKS * device.processors)
        return Plan(STAGED_ROWS, (blocks,), (32 * STAGED_WARPS,), np.int32(share), staged)
    capacity = next(most for most in CAPACITIES if rows <= most)
    # no more than needed: warps that take neighbouring tiles read the same x, and find it in the cache
    share = _power_of_two(min(2 * SPLIT_FILL * device.processors // tiles, steps, SPLIT_WARPS))
    blocks = -(-tiles * share // SPLIT_WARPS)
    return Plan(capacity, (blocks,), (32 * SPLIT_WARPS,), np.int32(share), sums * SPLIT_WARPS)


def split(x: Any, capacity: int, *, device: Device) -> tuple[Any, Any]:
    """Rows of x [R, M] as the halves that kernels of this `capacity` read, and what undoes their scale."""
    rows, columns = x.shape
    terms, unscale = split_room(rows, columns, capacity, device=device)
    args = (terms, unscale, x, np.int32(columns), np.int32(2 * capacity))
    device.kernel("linear", "q4_split")((rows,), (256,), args)
    return terms, unscale


def split_room(rows: int, columns: int, capacity: int, *, device: Device) -> tuple[Any, Any]:
    """Scratch for `split` and its like: f16 [blocks of 32, 2 * capacity, 32] and f32 [rows]."""
    blocks = 2 * -(-columns // STEP)
    terms = device.scratch("q4.terms", (blocks, 2 * capacity, 32), np.float16)
    return terms, device.scratch("q4.unscale", (rows,), np.float32)


def _power_of_two(most: int) -> int:
    """The largest not above `most`, at least 1."""
    return 1 << max(1, most).bit_length() - 1
