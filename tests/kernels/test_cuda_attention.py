"""Attention and RoPE of the CUDA backend, beyond what the op suite asks of every backend.

On the emulator under several schedules, and on a card where there is one. Rings begin full of NaN: whatever
reads a slot that was never written shows.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ShapeError, reference
from kernels.cuda import attention, rope
from kernels.cuda.device import Device
from kernels.tensor import Ring
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import ATOL_TURN, F32, HALF, RTOL_POINT, normal, words
from tests.kernels.devices import CARD, emulated, opened

DECODER = (8, 2, 128)  # query heads, key heads, width
ENCODER = (3, 3, 64)


@pytest.fixture(scope="module", params=[0, 1, CARD])
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def fresh(device: Device, lanes: int, shape: tuple[int, int, int], capacity: int, kv: str = "f16") -> Ring:
    """A ring that holds nothing, and shows where it is read all the same."""
    ring = attention.ring(lanes, shape[1], capacity, shape[2], kv=kv, device=device)
    for part in (ring.k, ring.v, ring.k_scale, ring.v_scale):
        if part is not None:
            device.upload(np.full(part.shape, -128 if part.dtype == np.int8 else np.nan, part.dtype), part)
    return ring


def append(
    device: Device, ring: Ring, items: int, *, seed: int = 0, active: np.ndarray | None = None
) -> None:
    lanes, heads, _, width = ring.k.shape
    k, v = (device.upload(normal(lanes, items, heads, width, seed=2 * seed + i)) for i in (0, 1))
    on = words(*[1] * lanes) if active is None else active
    attention.append(ring, k, v, device.upload(on), device=device)


def attend(device: Device, ring: Ring, q: np.ndarray, window: int) -> np.ndarray:
    out = device.upload(np.full_like(q, np.nan))
    attention.attend(out, device.upload(q), ring, window, device=device)
    return device.fetch(out).wait()


def held(device: Device, ring: Ring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and values as float64, and the counts."""
    k, v, count = (device.fetch(part).wait() for part in (ring.k, ring.v, ring.count))
    k, v = k.astype(np.float64), v.astype(np.float64)
    if ring.k_scale is not None:
        k *= device.fetch(ring.k_scale).wait().astype(np.float64)[..., None]
        v *= device.fetch(ring.v_scale).wait().astype(np.float64)[..., None]
    return k, v, count


def tolerance(q: np.ndarray, ring: Ring) -> float:
    queries, width = q.shape[1] * q.shape[2] // ring.k.shape[1], q.shape[3]
    many = width in attention.WIDTHS and queries >= attention.CHUNK_QUERIES
    return HALF if many else F32


def assert_rows_close(actual: np.ndarray, expected: np.ndarray, most: float, what: str) -> None:
    """Every [D] row, norm-wise; rows of zeros are zeros."""
    gap = np.linalg.norm(actual.astype(np.float64) - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    worst = np.unravel_index(np.argmax(gap - most * size), gap.shape)
    assert (gap <= most * size).all(), f"{what}: off by {gap[worst]:.3g} of {size[worst]:.3g} at {worst}"


def check(device: Device, ring: Ring, items: int, heads: int, window: int, what: str) -> np.ndarray:
    q = normal(len(ring.k), items, heads, ring.k.shape[3], seed=99)
    got = attend(device, ring, q, window)
    assert np.isfinite(got).all(), f"{what}: idle lanes give finite rows"
    assert_rows_close(got, reference.attend(q, *held(device, ring), window), tolerance(q, ring), what)
    return got


# --- attend

CASES = {  # heads, capacity, window, steps; the last step attends
    "decoder, wrapped": (DECODER, 100, 80, [40, 40, 40, 1]),
    "decoder, exactly full": (DECODER, 64, 64, [63, 1]),
    "decoder, first item": (DECODER, 64, 64, [1]),
    "decoder, two items": (DECODER, 150, 140, [100, 2]),
    "encoder, wrapped": (ENCODER, 103, 100, [80, 60, 4]),
    "encoder, wrapped inside a step": (ENCODER, 66, 50, [64, 4]),
    "encoder, one item short of a tile": (ENCODER, 103, 100, [90, 3]),
    "nine queries on two tiles": ((9, 1, 64), 40, 40, [40, 1]),
    "fifteen queries": ((5, 1, 128), 100, 90, [90, 3]),
    "every width: 8": ((4, 2, 8), 300, 280, [290, 3]),
    "every width: 16": ((4, 2, 16), 300, 280, [290, 3]),
    "every width: 32": ((4, 2, 32), 300, 280, [290, 3]),
    "odd width": ((4, 2, 5), 300, 280, [290, 3]),
    "wide": ((2, 1, 160), 40, 30, [35, 3]),
    "window of one": (DECODER, 16, 1, [9, 1]),
    "sixteen items": (ENCODER, 64, 40, [50, 16]),
    "prompt": (DECODER, 64, 60, [5]),
    "sixty-four items, wrapped": ((2, 2, 64), 163, 100, [90, 80, 64]),
    "sixty-five items": ((1, 1, 128), 164, 100, [100, 65]),
    "chunk from the first position": ((2, 2, 64), 70, 20, [51]),
}


@pytest.mark.parametrize("kv", ["f16", "q8"])
@pytest.mark.parametrize("shape, capacity, window, steps", CASES.values(), ids=CASES)
def test_attend_keeps_its_class(device, shape, capacity, window, steps, kv):
    ring = fresh(device, 1, shape, capacity, kv)
    for i, items in enumerate(steps):
        append(device, ring, items, seed=i)
    check(device, ring, steps[-1], shape[0], window, kv)


@settings(max_examples=25, deadline=None)
@given(
    width=st.sampled_from([4, 16, *attention.WIDTHS]), groups=st.integers(1, 2), shared=st.integers(1, 4),
    window=st.integers(1, 90), cuts=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    spare=st.integers(0, 40), kv=st.sampled_from(["f16", "q8"]), data=st.data(),
)  # fmt: skip
def test_lanes_at_positions_of_their_own(device, width, groups, shared, window, cuts, spare, kv, data):
    ring = fresh(device, 3, (groups * shared, groups, width), window + max(cuts) - 1 + spare, kv)
    for i, items in enumerate(cuts):
        on = words(*data.draw(st.tuples(*[st.integers(0, 1)] * 3)))
        append(device, ring, items, seed=i, active=on)
    check(device, ring, cuts[-1], groups * shared, window, f"{kv} after {cuts}")


@pytest.mark.parametrize("items, shape", [(1, DECODER), (4, ENCODER), (20, ENCODER), (3, (2, 2, 5))])
def test_a_lane_that_has_not_begun_gives_zeros(device, items, shape):
    ring = fresh(device, 2, shape, 32)
    append(device, ring, 1, active=words(0, 1))
    got = check(device, ring, items, shape[0], 8, "before position 0")
    assert_same(got[0], np.zeros_like(got[0]), what="lane without positions")
    assert_same(got[1, :-1], np.zeros_like(got[1, :-1]), what="items before position 0")


@pytest.mark.parametrize("shape, items", [(DECODER, 1), (ENCODER, 4), ((2, 2, 64), 20)])
@pytest.mark.parametrize("filled", [63, 64, 65, 300])
def test_many_splits_give_what_one_gives(shape, items, filled):
    outs = []
    for processors in (1, 64):
        device = emulated(processors=processors)
        ring = fresh(device, 1, shape, 320)
        for i in range(0, filled, 60):
            append(device, ring, min(60, filled - i), seed=i)
        append(device, ring, items, seed=1)
        outs.append(check(device, ring, items, shape[0], 300, f"{processors} processors"))
    assert_rows_close(*outs, 2 * F32 if items < 16 else HALF, "one split and many")


@pytest.mark.parametrize("filled", [959, 1024, 1100])  # 15, 16 and 18 splits; 16 gathered at once
def test_more_splits_than_are_gathered_at_once(filled):
    device = emulated(processors=64)
    ring = fresh(device, 1, (4, 1, 128), 1200)
    for i in range(0, filled - 1, 100):
        append(device, ring, min(100, filled - 1 - i), seed=i)
    append(device, ring, 1, seed=1)
    check(device, ring, 1, 4, 1150, f"after {filled}")


def test_splits_fill_the_device_once():
    """Every processor has work, and no block waits for a second round that others do not have."""
    for lanes, shape, items, window in [(1, (32, 8, 128), 1, 8192), (1, (32, 32, 64), 4, 750),
                                        (8, (32, 8, 128), 1, 8192), (64, (32, 8, 128), 1, 8192)]:  # fmt: skip
        ring = Ring(np.empty((lanes, shape[1], window + items, shape[2]), np.float16), None, None)
        how = attention.plan((lanes, items, shape[0], shape[2]), ring, window, 132)
        blocks = lanes * shape[1] * how.tiles * how.splits
        room = attention.BLOCKS_A_PROCESSOR * 132
        assert how.splits == 1 or 0.9 * room <= blocks <= room, f"{lanes} lanes of {shape}: {blocks} blocks"


def test_any_schedule_gives_the_same_bits():
    outs = []
    for seed in range(4):
        device = emulated(seed=seed, processors=16)
        ring = fresh(device, 2, ENCODER, 340)
        for i in range(5):
            append(device, ring, 60, seed=i, active=words(1, i % 2))
        outs.append([attend(device, ring, normal(2, items, 3, 64), 200) for items in (4, 20)])
    for other in outs[1:]:
        assert_same(other[0], outs[0][0], what="split")
        assert_same(other[1], outs[0][1], what="chunk")


@pytest.mark.parametrize("shape, items", [(DECODER, 1), (ENCODER, 16)])
def test_a_recorded_step_is_right_wherever_its_lanes_stand(device, shape, items):
    ring = fresh(device, 2, shape, 150)
    heads, groups, width = shape
    k, v, q = (normal(2, items, n, width, seed=i) for i, n in enumerate((groups, groups, heads)))
    new_k, new_v, new_q, on = (device.upload(a) for a in (k, v, q, words(1, 1)))
    out = device.zeros(q.shape, np.float32)

    def step() -> None:
        attention.append(ring, new_k, new_v, on, device=device)
        attention.attend(out, new_q, ring, 130, device=device)

    step()
    replay = device.record(step)
    for i in range(1, 12):
        append(device, ring, 17, seed=i, active=words(1, i % 3 == 0))
        replay()
        expected = reference.attend(q, *held(device, ring), 130)
        assert_rows_close(device.fetch(out).wait(), expected, tolerance(q, ring), f"replay {i}")


def test_large_scores_leave_one_key(device):
    for items in (1, 16):
        ring = fresh(device, 1, (1, 1, 64), 32)
        k = np.where(np.arange(16)[None, :, None, None] == 7, 1e3, -1e3) * np.ones((1, 16, 1, 64))
        v = normal(1, 16, 1, 64)
        k, v = (device.upload(x.astype(np.float32)) for x in (k, v))
        attention.append(ring, k, v, device.upload(words(1)), device=device)
        got = attend(device, ring, np.full((1, items, 1, 64), 1e3, np.float32), 16)
        expected = np.float16(device.fetch(v).wait()[0, 7, 0]).astype(np.float32)
        assert_same(got[0, -1, 0], expected, what=f"the answer to {items} items")


def test_silent_values_stay_silent_in_eight_bits(device):
    for items in (1, 16):
        ring = fresh(device, 1, (1, 1, 64), 32, "q8")
        k, v = normal(1, 16, 1, 64), normal(1, 16, 1, 64, seed=1)
        v[0, :8] = 0
        attention.append(ring, *(device.upload(x) for x in (k, v, words(1))), device=device)
        check(device, ring, items, 1, 16, f"{items} items over silence and noise")
        attention.append(ring, *(device.upload(x) for x in (k, np.zeros_like(v), words(1))), device=device)
        got = attend(device, ring, normal(1, items, 1, 64), 2)
        assert_same(got[0, -1], np.zeros_like(got[0, -1]), what="what is made of silence")


# --- append


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_append_leaves_idle_lanes_and_other_slots_alone(device, kv):
    ring = fresh(device, 3, (2, 2, 12), 10, kv)
    append(device, ring, 7, active=words(1, 1, 0))
    names = ["k", "v", "count", *(["k_scale", "v_scale"] if kv == "q8" else [])]
    before = {name: device.fetch(getattr(ring, name)).wait() for name in names}
    append(device, ring, 5, seed=1, active=words(1, 0, 1))
    for name in names:
        after = device.fetch(getattr(ring, name)).wait()
        assert_same(after[1], before[name][1], what=f"{name} of the idle lane")
        if name != "count":
            assert_same(after[0, :, 2:7], before[name][0, :, 2:7], what=f"{name}, slots that kept theirs")
            assert_same(after[2, :, 5:], before[name][2, :, 5:], what=f"{name}, slots not reached")
    assert_same(device.fetch(ring.count).wait(), words(12, 7, 5), what="count")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([5, 8, 64, 130]))
def test_halves_are_those_of_the_reference(device, cuts, width):
    ring = fresh(device, 2, (3, 3, width), 9)
    k, v, count = (device.fetch(part).wait() for part in (ring.k, ring.v, ring.count))
    for i, items in enumerate(cuts):
        on = words(1, i % 2)
        new_k, new_v = (normal(2, items, 3, width, seed=2 * i + j) for j in (0, 1))
        append(device, ring, items, seed=i, active=on)
        k, v, count = reference.append(k, v, count, new_k, new_v, on)
    for name, expected in (("k", k), ("v", v), ("count", count)):
        assert_same(device.fetch(getattr(ring, name)).wait(), expected, what=name)


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_what_no_half_can_hold_stays_finite(device, kv):
    ring = fresh(device, 1, (1, 1, 8), 4, kv)
    loud = np.array([1e9, -1e9, 65504, -65520, 1, 0, np.inf, -np.inf], np.float32).reshape(1, 1, 1, 8)
    attention.append(ring, device.upload(loud), device.upload(loud), device.upload(words(1)), device=device)
    k, _, _ = held(device, ring)
    assert np.isfinite(k[0, 0, 0]).all()
    if kv == "f16":
        expected = np.array([65504, -65504, 65504, -65504, 1, 0, 65504, -65504], np.float64)
        assert_same(k[0, 0, 0], expected, what="kept")


@pytest.mark.parametrize("loud, most", [(1, attention.KV_Q8_ERROR), (8, attention.KV_Q8_LOUD_ERROR)])
@pytest.mark.parametrize("shape, items", [(DECODER, 1), (ENCODER, 4), (ENCODER, 16)])
def test_eight_bits_cost_what_is_stated(shape, items, loud, most):
    heads, groups, width = shape
    device, gain = emulated(), np.ones(width, np.float32)
    gain[:3] = loud
    ring = attention.ring(1, groups, 240, width, kv="q8", device=device)
    k, v = (gain * normal(1, 240, groups, width, seed=i) for i in (0, 1))
    for i in range(0, 240, 60):
        part = slice(i, i + 60)
        attention.append(ring, k[:, part].copy(), v[:, part].copy(), words(1), device=device)
    q = normal(1, items, heads, width, seed=2) / gain
    exact = reference.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), words(240), 200)
    error = np.linalg.norm(attend(device, ring, q, 200) - exact) / np.linalg.norm(exact)
    assert most / 4 < error < most, f"{error:.3g}, stated {most:g}"


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_ring_bytes_counts_what_a_lane_takes(kv):
    ring = attention.ring(1, 3, 7, 16, kv=kv, device=emulated())
    parts = [part for part in (ring.k, ring.v, ring.k_scale, ring.v_scale) if part is not None]
    assert attention.ring_bytes(3, 7, 16, kv=kv) == sum(part.nbytes for part in parts)


def test_refusals_name_the_op():
    device = emulated()
    ring, one = fresh(device, 1, DECODER, 8), device.zeros((1, 1, 8, 128), np.float32)
    with pytest.raises(ShapeError, match="append: k"):
        attention.append(ring, device.zeros((1, 9, 2, 128), np.float32), one, words(1), device=device)
    with pytest.raises(ShapeError, match="need 9 slots, not 8"):
        attention.attend(one, one, ring, 9, device=device)
    with pytest.raises(ShapeError, match="attend: out"):
        attention.attend(device.zeros((1, 1, 8, 64), np.float32), one, ring, 8, device=device)
    with pytest.raises(ShapeError, match=r"rope: .* even width"):
        rope.rope(device.zeros((1, 1, 1, 5), np.float32), words(1), 1e4, device=device)


# --- rope


@settings(max_examples=25, deadline=None)
@given(
    position=st.lists(st.integers(0, 2**31 - 8) | st.just(10_000_000), min_size=1, max_size=3),
    items=st.integers(1, 5), heads=st.integers(1, 5), pairs=st.integers(1, 70),
    theta=st.sampled_from([1e4, 1e6]),
)  # fmt: skip
def test_rope_is_exact_after_days(device, position, items, heads, pairs, theta):
    x, at = normal(len(position), items, heads, 2 * pairs), words(*position)
    on_device = device.upload(x)
    rope.rope(on_device, device.upload(at), theta, device=device)
    got, want = device.fetch(on_device).wait(), reference.rope(x, at, theta)
    assert_close(got, want, rtol=RTOL_POINT, atol=ATOL_TURN, what=f"rope at {position}")


def test_rope_of_more_pairs_than_threads(device):
    x, at = normal(1, 2, 40, 128), words(12345)
    on_device = device.upload(x)
    rope.rope(on_device, device.upload(at), 1e6, device=device)
    want = reference.rope(x, at, 1e6)
    assert_close(device.fetch(on_device).wait(), want, rtol=RTOL_POINT, atol=ATOL_TURN, what="rope")
