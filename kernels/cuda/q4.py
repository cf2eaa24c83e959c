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
TAKEN_BYTES = 1024  # of a block's shared memory by the system, and 272 by `head_4` itself
SPLIT_WARPS = 4  # more columns take more registers: 3 to 5 such blocks fit a processor
SPLIT_BLOCKS = 4
SPLIT_THREADS = 512  # of `split` and its like, a block per row
LEAST_STEPS = 8  # of a warp: two that it loads ahead, and the rest to do meanwhile


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch.

    capacity : rows of x the kernel is made for; STAGED_ROWS where every block splits them itself
    share : warps of a block that take the columns of one tile in turns
    shared : bytes of dynamic shared memory
    parts : into how many the columns are cut, for blocks grid[1] that each leave a product of their own
    """

    capacity: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    share: np.int32
    shared: int
    parts: int = 1


def plan(
    rows: int, tiles: int, columns: int, *, device: Device, matrices: int = 1, in_parts: bool = False
) -> Plan:
    """For 1 to MOST_ROWS rows of x, and so many tiles of a matrix, or of `matrices` side by side.

    in_parts : whether the caller adds up what the blocks leave
    """
    steps = -(-columns // STEP)
    sums = 4 * TILE * rows * matrices  # bytes of a warp
    warps, most = STAGED_WARPS // matrices, STAGED_BLOCKS + matrices - 1  # two take more registers
    staged = 4 * STEP * rows * steps + 16 + sums * warps
    if rows <= STAGED_ROWS and staged + TAKEN_BYTES <= device.shared_bytes:
        together = min(most, (device.shared_bytes + TAKEN_BYTES) // (staged + TAKEN_BYTES))
        fill = together * warps * device.processors // tiles  # as many as are there at once
        share = _power_of_two(min(fill, steps, warps))
        blocks = min(-(-tiles * share // warps), together * device.processors)
        return Plan(STAGED_ROWS, (blocks,), (32 * warps,), np.int32(share), staged)
    capacity = next(most for most in CAPACITIES if rows <= most)
    room = SPLIT_WARPS * sums
    blocks, wanted = -(-tiles // SPLIT_WARPS), SPLIT_BLOCKS * device.processors
    # Warps with neighbouring tiles and the same columns read the same x, and find it in the cache: rather
    # than share a tile, blocks cut the columns, until their sums are as many bytes as the weights.
    parts = min(wanted // blocks, steps // LEAST_STEPS, columns // (16 * rows)) if in_parts else 1
    if parts > 1:
        parts = -(-steps // -(-steps // parts))  # none without a step
        return Plan(capacity, (blocks, parts), (32 * SPLIT_WARPS,), np.int32(1), room, parts)
    share = _power_of_two(min(wanted // blocks, steps, SPLIT_WARPS))
    return Plan(capacity, (-(-tiles * share // SPLIT_WARPS),), (32 * SPLIT_WARPS,), np.int32(share), room)


def split(x: Any, capacity: int, *, device: Device) -> tuple[Any, Any]:
    """Rows of x [R, M] as the halves that kernels of this `capacity` read, and what undoes their scale."""
    rows, columns = x.shape
    terms, unscale = split_room(rows, columns, capacity, device=device)
    args = (terms, unscale, x, np.int32(columns), np.int32(2 * capacity))
    device.kernel("linear", "q4_split")((rows,), (SPLIT_THREADS,), args)
    return terms, unscale


def split_room(rows: int, columns: int, capacity: int, *, device: Device) -> tuple[Any, Any]:
    """Scratch for `split` and its like: f16 [blocks of 32, 2 * capacity, 32] and f32 [rows]."""
    blocks = 2 * -(-columns // STEP)
    terms = device.scratch("q4.terms", (blocks, 2 * capacity, 32), np.float16)
    return terms, device.scratch("q4.unscale", (rows,), np.float32)


def _power_of_two(most: int) -> int:
    """The largest not above `most`, at least 1."""
    return 1 << max(1, most).bit_length() - 1
