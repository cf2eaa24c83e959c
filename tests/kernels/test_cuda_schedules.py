"""Kernels under many schedules and at shapes nobody chose: the same bits, and near the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import BackendMissing, reference
from kernels.cuda import source
from kernels.cuda.backend import Cuda
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import (
    ATOL_POINT,
    KINDS,
    RTOL_POINT,
    assert_within,
    attend_limit,
    normal,
    product_limit,
    read_ring,
    weight,
    words,
)
from tests.kernels.emulator.device import UNWRITTEN, EmulatedDevice
from tests.kernels.emulator.tour import backends, tour

ATOL_NORM = 3 * ATOL_POINT  # of 2000 columns around a mean that is not zero


@pytest.fixture(scope="module")
def in_turn() -> list[tuple[Cuda, dict[str, np.ndarray]]]:
    """The backends of the tour, and what it gave while threads took turns."""
    try:
        return [(ops, dict(tour(ops))) for ops in backends()]
    except BackendMissing as reason:
        pytest.skip(str(reason))


def test_the_tour_calls_every_kernel(in_turn):
    launched = {launch.partition(" ")[2] for ops, _ in in_turn for launch in ops.device.launched}
    assert {f"{file} {kernel}" for file in source.FILES for kernel in source.kernels(file)} == launched


def test_nothing_in_the_tour_is_left_unwritten(in_turn):
    steps = [step for _, results in in_turn for step in results.items()]
    assert [name for name, result in steps if not np.isfinite(result).all()] == []


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.parametrize("which", range(3), ids=["small", "large", "turing-rows-q8"])
def test_no_schedule_changes_a_bit(in_turn, which, seed):
    for name, drawn in tour(backends(seed)[which]):
        assert_same(drawn, in_turn[which][1][name], what=f"{name} with seed {seed}")


# --- shapes nobody chose


def device(seed: int, processors: int) -> EmulatedDevice:
    try:
        return EmulatedDevice(seed=seed, processors=processors)
    except BackendMissing as reason:
        pytest.skip(str(reason))


machines = st.builds(device, st.integers(0, 3), st.sampled_from([1, 2, 7]))
few = settings(max_examples=30, deadline=None)


@few
@given(
    machines, st.sampled_from(KINDS), st.sampled_from(["fragment", "rows"]), st.integers(1, 140),
    st.integers(1, 70), st.integers(1, 12), st.integers(0, 31),
)  # fmt: skip
def test_linear_at_any_shape(machine, kind, layout, rows, outputs, blocks, odd):
    ops = Cuda(machine, layout=layout)
    columns = 32 * blocks + (odd if kind in ("f32", "f16", "bf16") else 0)
    x, bias = normal(rows, columns), normal(outputs, seed=1)
    w, dense = weight(ops, normal(outputs, columns, seed=2), kind)
    out = machine.empty((rows, outputs), np.float32)
    ops.linear(out, ops.upload(x), w, ops.upload(bias))
    expected = x.astype(np.float64) @ dense.T.astype(np.float64) + bias
    size = np.sqrt(x**2 @ (dense**2).T)
    limit = product_limit(ops, kind, rows)
    assert_within(out, expected, limit, what=f"{kind} {layout} {x.shape}", size=size)


@few
@given(
    machines, st.sampled_from(["f16", "q8"]), st.sampled_from([3, 8, 16, 32, 64, 128]), st.integers(1, 3),
    st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 140), st.data(),
)  # fmt: skip
def test_attend_at_any_shape(machine, kv, width, kept, shared, steps, window, data):
    """Slots never written hold NaN."""
    ops = Cuda(machine, kv=kv)
    capacity = window + max(steps) - 1 + data.draw(st.integers(0, 5))
    ring = ops.ring(2, kept, capacity, width)
    for part in (ring.k, ring.v, ring.k_scale, ring.v_scale):
        if part is not None:
            part.view(np.uint8)[...] = UNWRITTEN
    ring.count[0] = start = data.draw(st.sampled_from([0, capacity - 1, 3 * capacity + 2]))
    if start:  # lane 0 has heard as much as the ring keeps
        ring.count[0] -= min(start, capacity)
        past = (normal(2, min(start, capacity), kept, width, seed=seed) for seed in (5, 6))
        ops.append(ring, *(ops.upload(part) for part in past), ops.upload(words(1, 0)))
    for step, items in enumerate(steps):
        new = (ops.upload(normal(2, items, kept, width, seed=2 * step + j)) for j in (0, 1))
        ops.append(ring, *new, ops.upload(words(1, step % 2)))
        q = normal(2, items, kept * shared, width, seed=9)
        out = machine.empty(q.shape, np.float32)
        ops.attend(out, ops.upload(q), ring, window)
        on = slice(0, 1 + step % 2)
        k, v, count = read_ring(ops, ring)
        expected = reference.attend(q[on], k[on], v[on], count[on], window)
        assert np.isfinite(out).all()
        assert_within(out[on], expected, attend_limit(ops, q, kept), what=f"{items} items of {width}")


@few
@given(machines, st.integers(1, 5), st.integers(1, 2100), st.booleans())
def test_norms_at_any_shape(machine, rows, columns, scaled):
    ops = Cuda(machine)
    x, gain = 3 * normal(rows, columns) + 1, normal(columns, seed=1)
    scale = normal(columns, seed=2) if scaled else None
    out = machine.empty(x.shape, np.float32)
    ops.rms_norm(out, ops.upload(x), ops.upload(gain), 1e-5, None if scale is None else ops.upload(scale))
    expected = reference.rms_norm(x, gain, 1e-5, scale)
    assert_close(out, expected, rtol=RTOL_POINT, atol=ATOL_POINT, what="rms_norm")
    ops.layer_norm(out, ops.upload(x), ops.upload(gain), ops.upload(gain), 1e-5)
    expected = reference.layer_norm(x, gain, gain, 1e-5)
    assert_close(out, expected, rtol=RTOL_POINT, atol=ATOL_NORM, what="layer_norm")
