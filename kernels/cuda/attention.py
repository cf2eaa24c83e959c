"""K/V rings of halves or of bytes, and attention over them: tensor cores for heads of 64 and 128 columns.

Which kernel serves is settled by shapes alone, so that a recorded step stays valid at every position: a
launch has as many splits as could ever be of use, and those that have no keys yet return at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.cuda.device import NULL, Device
from kernels.errors import ShapeError
from kernels.tensor import Ring

WIDTHS = (64, 128)  # of heads that the fast kernels are written for; others take one warp for a query
CHUNK_QUERIES = 16  # per key head; from two full tiles of 8 on, keys read once are worth a half's precision
LEAST_KEYS = 64  # a split takes, as in attention.cuh
BLOCKS_A_PROCESSOR = 2  # 8 warps with 8 KB on their way each; more splits would only be more to gather
KV_Q8_ERROR = 1.5e-2  # of a row of `out`, norm-wise: measured 0.8e-2 to 1.1e-2 on normal keys and values
KV_Q8_LOUD_ERROR = 5e-2  # where a few columns are eight times as loud as the others, which share their step


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step of attention is launched: the grid is K * tiles, splits, B."""

    kernel: str
    tiles: int
    splits: int
    shared: int  # bytes


def ring(lanes: int, heads: int, capacity: int, width: int, *, kv: str, device: Device) -> Ring:
    """An empty ring of halves, or with kv "q8" of bytes and a step for each position and head.

    A step is a half: bytes are counted in the step as it is kept, so its rounding costs nothing, and an f32
    would cost 3 % of the bytes that a head of 64 reads.
    """
    shape = lanes, heads, capacity, width
    count = device.zeros((lanes,), np.int32)
    if kv == "f16":
        return Ring(device.zeros(shape, np.float16), device.zeros(shape, np.float16), count)
    k, v = (device.zeros(shape, np.int8) for _ in range(2))
    return Ring(k, v, count, *(device.zeros(shape[:3], np.float16) for _ in range(2)))


def ring_bytes(heads: int, capacity: int, width: int, *, kv: str) -> int:
    """What the keys and values of one lane take, with the steps of 8-bit ones."""
    row = 2 * width if kv == "f16" else width + 2
    return 2 * heads * capacity * row


def append(ring: Ring, k: Any, v: Any, active: Any, *, device: Device) -> None:
    """Write k, v [B, T, K, D] behind the newest position of every active lane, and count them."""
    lanes, heads, capacity, width = ring.k.shape
    items = k.shape[1]
    if k.shape != (lanes, items, heads, width) or v.shape != k.shape or items > capacity:
        raise ShapeError(f"append: k {k.shape} and v {v.shape} do not fit a ring {ring.k.shape}")
    if not k.shape[0] * items:
        return
    grid = -(-2 * items * heads // 8), lanes
    tickets = device.scratch("append tickets", (lanes,), np.uint32)
    kernel = device.kernel("attention", f"append_{_kept(ring)}")
    kernel(grid, (256,), (
        ring.k, ring.v, *_scales(ring), ring.count, tickets, k, v, active,
        *(np.int32(size) for size in (items, heads, capacity, width)),
    ))  # fmt: skip


def attend(out: Any, q: Any, ring: Ring, window: int, *, device: Device) -> None:
    """out [B, T, H, D]: the T newest positions look back at most `window` positions, themselves included."""
    _check(q, ring, window)
    if out.shape != q.shape:
        raise ShapeError(f"attend: out is {out.shape}, but q {q.shape}")
    if not math.prod(q.shape):
        return
    if q.shape[3] in WIDTHS:
        _attend_tiles(out, q, ring, window, device)
    else:
        _attend_any(out, q, ring, window, device)


def plan(q_shape: tuple[int, ...], ring: Ring, window: int, processors: int) -> Plan:
    """Tiles of 8 queries, or of 64 where there are many; splits to fill the device once and no further."""
    lanes, items, heads, width = q_shape
    groups = ring.k.shape[1]
    queries = items * heads // groups
    name = f"{_kept(ring)}_{width}"
    if queries < CHUNK_QUERIES:
        name, tile, shared = f"split_{name}", 8, 4 * 4 * 8 * (width + 2)  # warps, queries
    else:
        name, tile, shared = f"chunk_{name}", 64, 4 * (64 * (width + 16) // 2 + 32 * (width + 8) + 3 * 64)
    tiles = -(-queries // tile)
    room = BLOCKS_A_PROCESSOR * processors // (lanes * groups * tiles)
    return Plan(name, tiles, max(1, min(room, -(-(window + items - 1) // LEAST_KEYS))), shared)


def _check(q: Any, ring: Ring, window: int) -> None:
    lanes, _, heads, width = q.shape
    if heads % ring.k.shape[1] or width != ring.k.shape[3] or lanes != len(ring.k):
        raise ShapeError(f"attend: q {q.shape} does not fit a ring {ring.k.shape}")
    need = window + q.shape[1] - 1
    if window < 1 or need > ring.capacity:
        raise ShapeError(
            f"attend: window {window} and {q.shape[1]} items need {need} slots, not {ring.capacity}"
        )


def _attend_tiles(out: Any, q: Any, ring: Ring, window: int, device: Device) -> None:
    lanes, items, heads, width = q.shape
    groups = ring.k.shape[1]
    how = plan(q.shape, ring, window, device.processors)
    between: tuple[Any, ...] = NULL, NULL, NULL  # one split leaves nothing to be gathered
    if how.splits > 1:
        lead = lanes, groups, how.splits, items * heads // groups
        between = (
            device.scratch("attention tickets", (lanes, groups * how.tiles), np.uint32),
            device.scratch("attention sums", (*lead, 2), np.float32),
            device.scratch("attention parts", (*lead, width), np.float32),
        )
    sizes = items, heads // groups, ring.capacity, window
    device.kernel("attention", how.kernel)(
        (groups * how.tiles, how.splits, lanes), (128,),
        (out, *between, q, ring.k, ring.v, *_scales(ring), ring.count, *(np.int32(size) for size in sizes)),
        shared_mem=how.shared,
    )  # fmt: skip


def _attend_any(out: Any, q: Any, ring: Ring, window: int, device: Device) -> None:
    lanes, items, heads, width = q.shape
    groups = ring.k.shape[1]
    sizes = items, groups, heads // groups, ring.capacity, window, width
    device.kernel("attention", f"attend_any_{_kept(ring)}")(
        (-(-items * heads // 4), lanes), (128,),
        (out, q, ring.k, ring.v, *_scales(ring), ring.count, *(np.int32(size) for size in sizes)),
    )  # fmt: skip


def _kept(ring: Ring) -> str:
    return "f16" if ring.k_scale is None else "q8"


def _scales(ring: Ring) -> tuple[Any, Any]:
    return (NULL, NULL) if ring.k_scale is None else (ring.k_scale, ring.v_scale)
