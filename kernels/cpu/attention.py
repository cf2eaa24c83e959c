"""K/V rings, and attention over them in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cpu.plan import I32, Steps, bits
from kernels.errors import ShapeError
from kernels.tensor import Ring

KV = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}  # what keys and values may be kept as


def append(ring: Ring, k: Any, v: Any, active: Any, *, steps: Steps) -> None:
    """Write k, v [B, T, K, D] behind the newest position of every active lane, and count them."""
    lanes, heads, capacity, width = ring.k.shape
    items = k.shape[1]
    if k.shape != (lanes, items, heads, width) or v.shape != k.shape or items > capacity:
        raise ShapeError(f"append: k {k.shape} and v {v.shape} do not fit a ring {ring.k.shape}")
    _one_for_each("append", lanes, ring.count, active)
    held = steps.at(ring.k, ring.k.dtype), steps.at(ring.v, ring.v.dtype), steps.at(ring.count, I32)
    new = steps.at(k), steps.at(v), steps.at(active, I32)
    geometry = items, heads, capacity, width, ring.k.dtype.itemsize
    steps.add("append", lanes, *held, *new, *geometry, cost=12 * k.size)


def attend(out: Any, q: Any, ring: Ring, window: int, *, steps: Steps) -> None:
    """out [B, T, H, D]: the T newest positions look back at most `window` positions, themselves included."""
    lanes, items, heads, width = q.shape
    if heads % ring.k.shape[1] or width != ring.k.shape[3] or out.shape != q.shape or lanes != len(ring.k):
        raise ShapeError(f"attend: q {q.shape} and out {out.shape} do not fit a ring {ring.k.shape}")
    need = window + items - 1
    if window < 1 or need > ring.capacity:
        raise ShapeError(f"attend: window {window} and {items} items need {need} slots, not {ring.capacity}")
    _one_for_each("attend", lanes, ring.count)
    groups, size = ring.k.shape[1], ring.k.dtype.itemsize
    held = steps.at(ring.k, ring.k.dtype), steps.at(ring.v, ring.v.dtype), steps.at(ring.count, I32)
    geometry = items, heads, groups, ring.capacity, width, window, bits(width**-0.5), _inner(ring, steps)
    parts, cost = lanes * groups if items else 0, 2 * lanes * groups * need * width * size
    steps.add("attend", parts, steps.at(out), steps.at(q), *held, *geometry, cost=cost)


def _inner(ring: Ring, steps: Steps) -> int:
    """Address of what `attend` needs to know of the ring's numbers: see native/attention.py."""
    kind, tile, codes = next(k for k in KV if KV[k] == ring.k.dtype), steps.library.tile, steps.library.codes
    pairs = [codes[f"{verb}_{kind}_{rows}"] for rows in (tile, 1) for verb in ("scores", "mix")]
    words = np.array([ring.k.dtype.itemsize, tile, *pairs], np.int64)
    return steps.at(words, words.dtype)


def _one_for_each(op: str, lanes: int, *words: Any) -> None:
    for each in words:
        if each.shape != (lanes,):
            raise ShapeError(f"{op}: {lanes} lanes need as many words, not {each.shape}")
