"""Ops that keep state (rings, tails, a decoder's words) against the reference; idle lanes are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ShapeError, reference
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import (
    ATOL_DOT,
    RTOL_POINT,
    assert_kept,
    assert_within,
    attend_limit,
    normal,
    read,
    read_ring,
    words,
)

# --- attention

RINGS = {  # heads, key heads, width, capacity, window, steps
    "one item": (1, 1, 2, 4, 4, [1]),
    "not yet full": (4, 4, 8, 16, 16, [1, 1, 1]),
    "exactly full": (4, 2, 8, 8, 8, [1] * 8),
    "wrapped": (6, 2, 5, 8, 8, [1] * 21),
    "wrapped inside a step": (4, 4, 16, 11, 8, [4, 3, 4, 1, 4, 4]),
    "window shorter than ring": (6, 3, 8, 16, 5, [4] * 7),
    "window of one": (2, 2, 8, 4, 1, [3, 2, 4]),
    "step as long as the ring": (2, 1, 8, 8, 1, [8, 8]),
    "more slots than one product takes": (4, 2, 8, 300, 297, [4] * 80),
    "many queries of heads of 64": (4, 2, 64, 96, 64, [32, 17, 16]),
    "many queries of heads of 128": (2, 1, 128, 40, 24, [9, 16, 5]),
}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("heads, groups, width, capacity, window, steps", RINGS.values(), ids=RINGS)
def test_append_and_attend(ops, lanes, heads, groups, width, capacity, window, steps):
    """What is appended is what the ring holds, as far as its storage goes; attention is of what it holds."""
    ring = ops.ring(lanes, groups, capacity, width)
    for i, items in enumerate(steps):
        active = words(*([1] if lanes == 1 else [i % 2, 1, i % 3 > 0]))
        new_k, new_v = (normal(lanes, items, groups, width, seed=2 * i + j) for j in (0, 1))
        *before, count = read_ring(ops, ring)
        ops.append(ring, ops.upload(new_k), ops.upload(new_v), ops.upload(active))
        *held, after = read_ring(ops, ring)
        ones, zeros = np.ones_like(new_k), np.zeros_like(before[0])
        written = reference.append(zeros, zeros, count, ones, ones, active)[0][..., 0] > 0  # [B, K, C]
        *expected, counted = reference.append(*before, count, new_k, new_v, active)
        assert_same(after, counted, what=f"ring.count after step {i}")
        for name, was, now, want in zip("kv", before, held, expected, strict=True):
            assert_same(now[~written], was[~written], what=f"other slots of ring.{name} after step {i}")
            assert_kept(ops, now[written], want[written], what=f"ring.{name} after step {i}")
        if i < len(steps) - 3 and i > 8:
            continue  # the reference takes its time
        q, out = normal(lanes, items, heads, width, seed=i), ops.zeros((lanes, items, heads, width))
        ops.attend(out, ops.upload(q), ring, window)
        got, on = read(ops, out), active > 0
        assert np.isfinite(got).all(), "idle lanes give finite rows"
        want = reference.attend(q[on], held[0][on], held[1][on], after[on], window)
        assert_within(got[on], want, attend_limit(ops, q, groups), what=f"attend at step {i}")


@pytest.mark.parametrize(("heads", "width", "cut"), [(32, 4, 20), (2, 64, 1)])
def test_one_long_step_attends_like_many_short_ones(ops, heads, width, cut):
    window, items = 500, 80  # 80 * 32 * 620 scores: more than a backend may hold at once
    rings = [ops.ring(1, heads, 620, width) for _ in range(2)]
    past, new = normal(1, 540, heads, width), normal(1, items, heads, width, seed=1)
    q = normal(1, items, heads, width, seed=2)
    on = ops.upload(words(1))
    for ring in rings:
        ops.append(ring, ops.upload(past), ops.upload(past), on)
    ops.append(rings[0], ops.upload(new), ops.upload(new), on)
    out = ops.zeros(q.shape)
    ops.attend(out, ops.upload(q), rings[0], window)
    for start in range(0, items, cut):
        part = np.s_[:, start : start + cut]
        short = ops.zeros((1, cut, heads, width))
        ops.append(rings[1], ops.upload(new[part]), ops.upload(new[part]), on)
        ops.attend(short, ops.upload(q[part]), rings[1], window)
        limit = attend_limit(ops, q, heads)
        assert_within(read(ops, out)[part], read(ops, short), limit, what=f"items from {start}")


def test_attend_survives_large_scores(ops):
    ring = ops.ring(1, 1, 4, 2)
    k = np.full((1, 2, 1, 2), 1e3, np.float32)
    k[0, 1] = -1e3
    ops.append(ring, ops.upload(k), ops.upload(k), ops.upload(words(1)))
    out = ops.zeros((1, 1, 1, 2))
    ops.attend(out, ops.upload(np.full((1, 1, 1, 2), 1e3, np.float32)), ring, 4)
    expected = read_ring(ops, ring)[1][:, :, :1]  # all weight is on the first item
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=0, what="one-sided softmax")


def test_rings_refuse_what_does_not_fit(ops):
    ring, on = ops.ring(1, 2, 8, 4), ops.upload(words(1))
    long, wide = ops.zeros((1, 9, 2, 4)), ops.zeros((1, 1, 2, 5))
    with pytest.raises(ShapeError, match="append"):
        ops.append(ring, long, long, on)
    with pytest.raises(ShapeError, match="append"):
        ops.append(ring, wide, wide, on)
    with pytest.raises(ShapeError, match="need 9 slots"):
        ops.attend(ops.zeros((1, 2, 2, 4)), ops.zeros((1, 2, 2, 4)), ring, 8)
    with pytest.raises(ShapeError, match="attend"):
        ops.attend(ops.zeros((1, 1, 3, 4)), ops.zeros((1, 1, 3, 4)), ring, 4)


# --- conv


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("lanes", "items", "channels", "rows", "taps", "stride"),
    [(1, 1, 1, 1, 3, 1), (3, 8, 5, 7, 3, 1), (3, 8, 6, 33, 3, 2), (2, 2, 4, 4, 2, 2), (1, 12, 3, 5, 7, 4)],
)
def test_conv1d(ops, lanes, items, channels, rows, taps, stride, biased):
    tail, x = normal(lanes, taps - stride, channels), normal(lanes, items, channels, seed=1)
    w, bias = normal(rows, channels, taps, seed=2), normal(rows, seed=3) if biased else None
    active = words(*[lane != 1 for lane in range(lanes)])
    held, out = ops.upload(tail), ops.zeros((lanes, items // stride, rows))
    device_bias = None if bias is None else ops.upload(bias)
    ops.conv1d(out, held, ops.upload(x), ops.upload(w), device_bias, stride, ops.upload(active))
    expected, after = reference.conv1d(tail, x, w, bias, stride, active)
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=ATOL_DOT, what="conv1d")
    assert_same(read(ops, held), after, what="tail")


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5), stride=st.sampled_from([1, 2]))
def test_conv1d_does_not_depend_on_chunking(ops, cuts, stride):
    x, w, on = normal(1, stride * sum(cuts), 3), normal(4, 3, 3, seed=1), words(1)
    parts, tail, start = [], ops.zeros((1, 3 - stride, 3)), 0
    for cut in cuts:
        out, chunk = ops.zeros((1, cut, 4)), x[:, start : start + stride * cut]
        ops.conv1d(out, tail, ops.upload(chunk), ops.upload(w), None, stride, ops.upload(on))
        parts.append(read(ops, out))
        start += stride * cut
    whole, _ = reference.conv1d(np.zeros((1, 3 - stride, 3)), x, w, None, stride, on)
    assert_close(np.concatenate(parts, 1), whole, rtol=RTOL_POINT, atol=ATOL_DOT, what=f"cuts {cuts}")


def test_conv1d_refuses_what_does_not_fit(ops):
    w, on = ops.upload(normal(4, 3, 3)), ops.upload(words(1))
    with pytest.raises(ShapeError, match="conv1d"):
        ops.conv1d(ops.zeros((1, 1, 4)), ops.zeros((1, 1, 3)), ops.zeros((1, 3, 3)), w, None, 2, on)
    with pytest.raises(ShapeError, match="conv1d"):
        ops.conv1d(ops.zeros((1, 2, 4)), ops.zeros((1, 1, 3)), ops.zeros((1, 2, 3)), w, None, 1, on)
