"""Memory verbs and replay, of every backend."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import KernelError, ShapeError, quant, reference
from tests.compare import assert_same
from tests.kernels.arrays import KINDS, assert_within, normal, product_limit, read, weight, words


def test_memory_verbs(ops):
    assert_same(read(ops, ops.zeros((2, 3))), np.zeros((2, 3), np.float32), what="zeros f32")
    assert_same(read(ops, ops.zeros((2,), "i32")), words(0, 0), what="zeros i32")
    assert_same(read(ops, ops.zeros((2,), "f16")), np.zeros(2, np.float16), what="zeros f16")
    held = ops.upload(normal(3, 4))
    assert ops.upload(normal(3, 4, seed=1), out=held) is held
    ops.clear(held, 1)
    expected = normal(3, 4, seed=1)
    expected[1] = 0
    assert_same(read(ops, held), expected, what="upload into, then clear lane 1")
    with pytest.raises(KernelError, match="f64"):
        ops.zeros((1,), "f64")
    with pytest.raises(KernelError, match="float64"):
        ops.upload(np.zeros(3))
    with pytest.raises(ShapeError, match="upload"):
        ops.upload(normal(4, 3), out=held)


def test_upload_copies(ops):
    array = normal(4)
    held = ops.upload(array)
    array[:] = 0
    assert_same(read(ops, held), normal(4), what="uploaded")


def test_fetch_is_taken_as_of_now(ops):
    held = ops.upload(normal(4))
    pending = ops.fetch(held)
    ops.add(held, held, held)
    assert_same(pending.wait(), normal(4), what="fetched")
    assert pending.ready()


def test_a_copy_has_memory_of_its_own(ops):
    held = ops.upload(words(1, 2))
    copied = ops.copy(held)
    ops.upload(words(3, 4), out=held)
    assert_same(read(ops, copied), words(1, 2), what="copied")


def test_a_copy_goes_where_it_is_told(ops):
    held, out = ops.upload(normal(2, 3)), ops.zeros((2, 3))
    assert ops.copy(held, out=out) is out
    assert_same(read(ops, out), normal(2, 3), what="copied into")
    assert_same(read(ops, held), normal(2, 3), what="copied from")
    with pytest.raises(ShapeError, match="copy"):
        ops.copy(held, out=ops.zeros((3, 2)))


def test_some_items_of_every_lane_can_be_copied(ops):
    held, out = ops.upload(normal(3, 5, 4)), ops.zeros((3, 2, 4))
    assert_same(read(ops, ops.copy(held[:, 1:3])), normal(3, 5, 4)[:, 1:3], what="copied")
    ops.copy(held[:, 3:], out=out)
    assert_same(read(ops, out), normal(3, 5, 4)[:, 3:], what="copied into")


def test_ring_bytes_is_what_a_lane_of_the_ring_takes(ops):
    ring = ops.ring(3, 2, 40, 64)
    parts = [part for part in (ring.k, ring.v, ring.k_scale, ring.v_scale) if part is not None]
    assert 3 * ops.ring_bytes(2, 40, 64) == sum(part.nbytes for part in parts)
    assert ops.free_bytes() is None or ops.free_bytes() > 0


def test_the_first_lanes_of_a_ring_are_the_same_memory(ops):
    ring = ops.ring(3, 2, 4, 64)
    k, v = (ops.upload(normal(2, 1, 2, 64, seed=seed)) for seed in (0, 1))
    ops.append(ring.lanes(2), k, v, ops.upload(words(1, 1)))
    assert_same(read(ops, ring.count), words(1, 1, 0), what="count")
    for name, whole, part in (("k", ring.k, ring.lanes(2).k), ("v", ring.v, ring.lanes(2).v)):
        assert_same(read(ops, part), read(ops, whole)[:2], what=name)
        assert np.any(read(ops, part)), name


@pytest.mark.parametrize("kind", KINDS)
def test_adopt_refuses_the_wrong_number_of_bytes(ops, kind):
    raw = quant.pack(normal(3, 64), kind).reshape(-1)
    for wrong in (raw[:-1], np.concatenate([raw, raw[:1]]), raw[:0]):
        with pytest.raises(ShapeError, match="bytes"):
            ops.adopt(wrong, kind, (3, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_adopt_takes_bytes_at_any_address(ops, kind):
    dense = normal(3, 64)
    packed = quant.pack(dense, kind).reshape(-1)
    for offset in range(4):
        raw = np.zeros(len(packed) + offset, np.uint8)[offset:]
        raw[:] = packed
        out = ops.zeros((1, 3))
        ops.linear(out, ops.upload(normal(1, 64)), ops.adopt(raw, kind, (3, 64)))
        expected = reference.linear(normal(1, 64), quant.unpack(packed, kind, (3, 64)))
        assert_within(read(ops, out), expected, product_limit(ops, kind, 1), what=f"offset {offset}")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_gains_and_convolutions_are_adopted_as_f32(ops, kind):
    for dense in (normal(48), normal(5, 3, 3)):
        gain, expected = weight(ops, dense, kind)
        assert_same(read(ops, gain), expected, what=f"{kind} {dense.shape}")


def test_capture_runs_nothing_until_it_is_replayed(ops):
    total, one = ops.zeros((4,)), ops.upload(np.ones(4, np.float32))

    def step() -> None:
        ops.add(total, total, one)

    step()
    replay = ops.capture(step)
    before = read(ops, total)
    replay()
    replay()
    assert_same(before, np.ones(4, np.float32), what="before")
    assert_same(read(ops, total), np.full(4, 3, np.float32), what="after two replays")


def test_a_replay_reads_what_was_uploaded_and_copied_into_its_operands(ops):
    total, x, y = ops.zeros((4,)), ops.zeros((4,)), ops.zeros((4,))

    def step() -> None:
        ops.copy(x, out=y)
        ops.add(total, y, x)

    step()
    replay = ops.capture(step)
    for seed in (0, 1):
        ops.upload(normal(4, seed=seed), out=x)
        replay()
        assert_same(read(ops, total), 2 * normal(4, seed=seed), what=f"replay {seed}")
