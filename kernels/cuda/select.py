"""Choices: indices out of scores, and the words of a decoder's loop.

Few long rows must still fill a device, so several blocks share a row, and the last one to finish takes the
best of what they found. That is one launch; a second one would cost about a microsecond on every step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kernels.cuda.device import Device
from kernels.errors import ShapeError

THREADS = 256
BLOCKS_A_PROCESSOR = 4  # half of what one holds: the loads in flight then cover the latency of memory
SCORES_A_THREAD = 4  # fewer would leave the last block more to do than the others
TOGETHER = 4  # rows of x that `nearest` holds against each row of the codebook; as in select.cu
ADVANCE_THREADS = 64


def argmax(out: Any, x: Any, *, device: Device) -> None:
    """out [...] i32 = index of the largest of x [..., N]; the first on ties."""
    rows, columns = _scores("argmax", out, x)
    if rows:
        blocks = _blocks(rows, -(-columns // (THREADS * SCORES_A_THREAD)), device)
        args = (out, x, np.int32(columns), *_meeting(rows, rows, blocks, device))
        device.kernel("select", "argmax")((rows, blocks), (THREADS,), args)


def nearest(out: Any, x: Any, codebook: Any, *, device: Device) -> None:
    """out [...] i32 = row of codebook [N, C] nearest to x [..., C], Euclidean; the first on ties.

    Differences are squared as they are: |c|^2 - 2 x.c would cancel, and choose wrongly between near rows.
    """
    if out.shape != x.shape[:-1] or x.shape[-1] != codebook.shape[1]:
        raise ShapeError(f"nearest: out {out.shape}, x {x.shape} and codebook {codebook.shape} do not fit")
    points, (rows, columns) = math.prod(out.shape), codebook.shape
    if not rows:
        raise ShapeError("nearest: the codebook has no rows")
    if points:
        groups = -(-points // TOGETHER)
        blocks = _blocks(groups, -(-rows * 32 // THREADS), device)
        sizes = (np.int32(rows), np.int32(columns), np.int32(points))
        args = (out, x, codebook, *sizes, *_meeting(groups, TOGETHER * groups, blocks, device))
        device.kernel("select", "nearest")((groups, blocks), (THREADS,), args)


def pick(
    out: Any, x: Any, run: Any, blank: int, patience: int, slope: float, limit: float, active: Any, *,
    device: Device,
) -> None:
    """Greedy choice with the blank-run guard: out [B] i32 from logits x [B, N]; `run` [B] counts blanks."""
    lanes, columns = _scores("pick", out, x)
    if run.shape != out.shape or active.shape != out.shape:
        raise ShapeError(f"pick: run {run.shape} and active {active.shape} must be as out {out.shape}")
    if lanes:
        blocks = _blocks(lanes, -(-columns // (THREADS * SCORES_A_THREAD)), device)
        guard = (np.int32(blank), np.int32(patience), np.float64(slope), np.float64(limit))
        args = (out, x, run, *guard, active, np.int32(columns), *_meeting(lanes, lanes, blocks, device))
        device.kernel("select", "pick")((lanes, blocks), (THREADS,), args)


def advance(
    token: Any, picked: Any, prompt: Any, position: Any, active: Any, *, device: Device
) -> None:
    """The next input of active lanes: token[b] = prompt[position[b]] while inside it, else picked[b]."""
    if not token.shape == picked.shape == position.shape == active.shape or len(token.shape) != 1:
        raise ShapeError(
            f"advance: token {token.shape}, picked {picked.shape}, position {position.shape} and active "
            f"{active.shape} must all be one word per lane"
        )
    (lanes,), (length,) = token.shape, prompt.shape
    if lanes:
        args = (token, picked, prompt, position, active, np.int32(lanes), np.int32(length))
        device.kernel("select", "advance")((-(-lanes // ADVANCE_THREADS),), (ADVANCE_THREADS,), args)


def _scores(op: str, out: Any, x: Any) -> tuple[int, int]:
    """How many rows x [..., N] has, and N."""
    if out.shape != x.shape[:-1]:
        raise ShapeError(f"{op}: out is {out.shape}, but x {x.shape}")
    if not x.shape[-1]:
        raise ShapeError(f"{op}: there is nothing to choose from in {x.shape}")
    return math.prod(out.shape), x.shape[-1]


def _blocks(rows: int, most: int, device: Device) -> int:
    """Blocks for each of `rows`: enough together to fill the device, at most `most`."""
    return min(most, -(-BLOCKS_A_PROCESSOR * device.processors // rows))


def _meeting(tickets: int, rows: int, blocks: int, device: Device) -> tuple[Any, Any]:
    """What the blocks of a row leave for the last one, and the tickets that tell which it is."""
    parts = device.scratch("select parts", (rows, blocks), np.uint64)
    return parts, device.scratch("select tickets", (tickets,), np.uint32)
