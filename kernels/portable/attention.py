"""K/V rings. Slots are read where they lie: a mask by age does what sorting them by position would."""

from __future__ import annotations

import numpy as np

from kernels.errors import ShapeError
from kernels.tensor import Ring

SCORES = 1 << 20  # f32 scores held at once, 4 MiB: a long offline step is taken by lanes, then by items
SLOTS = 256  # ring slots per product: small enough for the BLAS kernels that skip packing, see linear.py


def append(ring: Ring, k: np.ndarray, v: np.ndarray, active: np.ndarray) -> None:
    """Write k, v [B, T, K, D] behind the newest position of every active lane, and count them."""
    lanes, heads, capacity, width = ring.k.shape
    items = k.shape[1]
    if k.shape != (lanes, items, heads, width) or v.shape != k.shape or items > capacity:
        raise ShapeError(f"append: k {k.shape} and v {v.shape} do not fit a ring {ring.k.shape}")
    for lane in np.flatnonzero(active).tolist():
        slot = int(ring.count[lane]) % capacity
        head = min(items, capacity - slot)  # what fits before the ring wraps
        for held, new in ((ring.k[lane], k[lane]), (ring.v[lane], v[lane])):
            held[:, slot : slot + head] = new[:head].swapaxes(0, 1)
            held[:, : items - head] = new[head:].swapaxes(0, 1)
        ring.count[lane] += items


def attend(out: np.ndarray, q: np.ndarray, ring: Ring, window: int) -> None:
    """out [B, T, H, D]: the T newest positions look back at most `window` positions, themselves included."""
    lanes, items, heads, width = q.shape
    if heads % ring.k.shape[1] or width != ring.k.shape[3] or out.shape != q.shape or lanes != len(ring.k):
        raise ShapeError(f"attend: q {q.shape} and out {out.shape} do not fit a ring {ring.k.shape}")
    need = window + items - 1
    if window < 1 or need > ring.capacity:
        raise ShapeError(f"attend: window {window} and {items} items need {need} slots, not {ring.capacity}")
    counts = ring.count.tolist()
    if len(set(counts)) == 1 and q.size // width * min(counts[0], ring.capacity) <= SCORES:
        _attend(out, q, ring.k, ring.v, counts[0], window)
        return
    for lane, count in enumerate(counts):
        one = slice(lane, lane + 1)
        step = max(1, SCORES // (heads * max(1, min(count, ring.capacity))))
        for start in range(0, items, step):
            part = one, slice(start, start + step)
            later = max(0, items - start - step)
            _attend(out[part], q[part], ring.k[one], ring.v[one], count, window, later)


def _attend(
    out: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, count: int, window: int, later: int = 0
) -> None:
    """Lanes that stand at the same position; `later` items were appended behind those of `q`.

    Only slots that were ever written are touched.
    """
    lanes, items, heads, width = q.shape
    groups, capacity = k.shape[1], k.shape[2]
    if count < items + later:  # an idle lane that has not begun
        out[...] = 0
        return
    filled = min(count, capacity)
    by_group = (lanes, items, groups, heads // groups, width)
    rows = q.reshape(by_group).transpose(0, 2, 1, 3, 4).reshape(lanes, groups, -1, width)
    rows = rows * np.float32(width**-0.5)  # [B, K, T * G, D]
    scores = np.empty((*rows.shape[:3], filled), np.float32)
    tiles = [slice(s, min(s + SLOTS, filled)) for s in range(0, filled, SLOTS)]
    for tile in tiles:
        np.matmul(rows, k[:, :, tile].swapaxes(2, 3), out=scores[..., tile])
    if items > 1 or later or filled > window:
        split = scores.reshape(lanes, groups, items, -1, filled)
        np.add(split, _bias(count, items, later, filled, capacity, window), out=split)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = np.matmul(scores[..., tiles[0]], v[:, :, tiles[0]])  # [B, K, T * G, D]
    for tile in tiles[1:]:
        mixed += np.matmul(scores[..., tile], v[:, :, tile])
    mixed /= scores.sum(axis=-1, keepdims=True)
    out.reshape(by_group)[...] = mixed.reshape(lanes, groups, items, -1, width).transpose(0, 2, 1, 3, 4)


def _bias(count: int, items: int, later: int, filled: int, capacity: int, window: int) -> np.ndarray:
    """[T, 1, filled]: 0 where item t sees the slot, else -inf. Slot s is (count - 1 - s) mod C old."""
    age = (count - 1 - np.arange(filled)) % capacity
    own = np.arange(later + items - 1, later - 1, -1)[:, None]  # [T, 1], age of the items themselves
    hidden = (age < own) | (age >= own + window)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None]
