"""Norms, pointwise ops and choices of the CUDA backend, beyond what the op suite asks of every backend.

On the emulator under several schedules, and on a card where there is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ShapeError, reference
from kernels.cuda import norm, pointwise, select
from kernels.cuda.device import Device
from kernels.portable import select as portable_select
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import RTOL_POINT, normal, words
from tests.kernels.devices import CARD, opened

NORM_CLASS = 1e-6  # of a whole row against float64: the f32 class
RTOL_TAIL = 2e-5  # erfc(z) magnifies the rounding of z by 2 z^2, and z reaches 9
TINY = 1e-37  # below it f32 has fewer digits
PADDING = 4  # rows of x that `nearest` takes together


@pytest.fixture(scope="module", params=[0, 1, 2, CARD])
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def run(device: Device, op: Any, out: np.ndarray, *operands: Any) -> np.ndarray:
    """What `op` makes of `out`, given host arrays and numbers."""
    held = device.upload(out)
    op(held, *(device.upload(o) if isinstance(o, np.ndarray) else o for o in operands), device=device)
    return device.fetch(held).wait()


def assert_norm_close(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    gap = np.linalg.norm(actual.astype(np.float64) - expected, axis=-1)
    assert (gap <= NORM_CLASS * np.linalg.norm(expected, axis=-1)).all(), f"{what}: {gap.max():.3g}"


# --- norm


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 700) | st.sampled_from([1280, 3072, 4099]), st.booleans())
def test_rms_norm_of_any_width(device, rows, columns, scaled):
    x, gain = 3 * normal(rows, columns), normal(columns, seed=1)
    scale = normal(columns, seed=2) if scaled else None
    got = run(device, norm.rms_norm, np.full_like(x, np.nan), x, gain, 1e-5, scale)
    assert_norm_close(got, reference.rms_norm(x, gain, 1e-5, scale), f"rms_norm {columns}")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 700) | st.sampled_from([1280, 3072, 4099]))
def test_layer_norm_of_any_width_with_rows_far_from_zero(device, rows, columns):
    gain, bias = normal(columns, seed=1), normal(columns, seed=2)
    for far in (0, 1000):
        x = normal(rows, columns) + np.float32(far)
        got = run(device, norm.layer_norm, np.full_like(x, np.nan), x, gain, bias, 1e-5)
        assert_norm_close(got, reference.layer_norm(x, gain, bias, 1e-5), f"layer_norm {columns} at {far}")


def test_layer_norm_of_a_constant_row_is_its_bias(device):
    x, bias = np.full((2, 100), np.float32(0.1)), normal(100)
    got = run(device, norm.layer_norm, np.zeros_like(x), x, np.ones(100, np.float32), bias, 1e-5)
    last_bit = 1e-8 / 1e-5**0.5  # of 0.1, over the root of eps
    assert_close(got, np.stack([bias, bias]), rtol=0, atol=last_bit, what="layer_norm")


@pytest.mark.parametrize("columns", [5, 96, 1280])
def test_norms_in_place_and_of_one_row_give_the_same_bits(device, columns):
    x, gain, bias = normal(3, columns), normal(columns, seed=1), normal(columns, seed=2)
    for op, rest in ((norm.rms_norm, (gain, 1e-5)), (norm.layer_norm, (gain, bias, 1e-5))):
        apart = run(device, op, np.zeros_like(x), x, *rest)
        held = device.upload(x)
        op(held, held, *(device.upload(r) if isinstance(r, np.ndarray) else r for r in rest), device=device)
        assert_same(device.fetch(held).wait(), apart, what=f"{op.__name__} in place")
        assert_same(run(device, op, np.zeros_like(x[1:2]), x[1:2], *rest), apart[1:2], what=op.__name__)


# --- pointwise

OPS = {"add": 2, "gelu": 1, "elu": 1, "silu_mul": 2}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(OPS)), st.integers(0, 40) | st.integers(1000, 1030), st.integers(0, 3))
def test_pointwise_bits_do_not_depend_on_size_or_address(device, op, count, skip):
    operands = [4 * normal(1064, seed=i) for i in range(OPS[op])]
    call = getattr(pointwise, op)
    whole = run(device, call, np.zeros(1064, np.float32), *operands)
    held = [device.upload(operand)[skip : skip + count] for operand in operands]
    out = device.zeros((1064,), np.float32)
    call(out[skip : skip + count], *held, device=device)
    expected = np.zeros(1064, np.float32)
    expected[skip : skip + count] = whole[skip : skip + count]
    assert_same(device.fetch(out).wait(), expected, what=f"{op} of {count} from {skip}, and nothing else")


def test_activations_keep_their_tails(device):
    x = np.linspace(-12.5, 12.5, 2001).astype(np.float32)
    got = run(device, pointwise.gelu, np.zeros_like(x), x)
    assert_close(got, reference.gelu(x), rtol=RTOL_TAIL, atol=TINY, what="gelu")
    small = np.array([-1e-8, -1e-20, 1e-20, -0.0, -1e4], np.float32)
    got = run(device, pointwise.elu, np.zeros_like(small), small)
    assert_close(got, reference.elu(small), rtol=RTOL_POINT, atol=0, what="elu")
    gate = np.concatenate([np.linspace(-84, 84, 169), [-1e4, 1e4, -3e38, 3e38]]).astype(np.float32)
    up = np.ones_like(gate)
    got = run(device, pointwise.silu_mul, np.zeros_like(gate), gate, up)
    exact = gate.astype(np.float64) / (1 + np.exp(-np.maximum(gate, -700).astype(np.float64)))
    assert_close(got, exact, rtol=RTOL_POINT, atol=TINY, what="silu")


# --- select


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3000) | st.just(40_000), st.sampled_from([1, 2, 50]))
def test_argmax_takes_the_first_of_equals_across_blocks(device, rows, columns, values):
    x = np.random.default_rng([rows, columns]).integers(0, values, (rows, columns)).astype(np.float32)
    x[:, : columns // 2] *= -1  # -0 before 0: they tie
    got = run(device, select.argmax, words(*[-1] * rows), x)
    assert_same(got, x.argmax(-1).astype(np.int32), what="argmax")


def test_argmax_of_infinities_and_nan_is_an_index(device):
    x = np.full((4, 5000), -np.inf, np.float32)
    x[1, 4321], x[2, 1234] = np.inf, -3e38
    x[3] = -np.float32("nan")
    got = run(device, select.argmax, words(-1, -1, -1, -1), x)
    assert got[:3].tolist() == [0, 4321, 1234]
    assert 0 <= got[3] < 5000


def test_choices_of_many_shapes_share_their_tickets(device):
    for rows, columns in ((1, 9000), (7, 3000), (70, 40), (2, 9000), (7, 3000)):
        x, codebook = normal(rows, columns), normal(columns // 40, 40)
        assert_same(
            run(device, select.argmax, words(*[-1] * rows), x), reference.argmax(x), what=f"{rows} {columns}"
        )
        points = x[:, :40]
        got = run(device, select.nearest, words(*[-1] * rows), points, codebook)
        assert_same(got, reference.nearest(points, codebook), what=f"nearest {rows} {columns}")
    assert not device.fetch(device.scratch("select tickets", (70,), np.uint32)).wait().any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2 * PADDING + 1), st.integers(1, 60), st.integers(1, 70))
def test_nearest_of_any_shape_and_the_first_of_equals(device, points, rows, columns):
    x, codebook = normal(points, columns), normal(rows, columns, seed=1)
    codebook[rows // 2 :] = codebook[: rows - rows // 2]  # every row twice
    got = run(device, select.nearest, words(*[-1] * points), x, codebook)
    assert_same(got, reference.nearest(x, codebook), what="nearest")
    alone = run(device, select.nearest, words(-1), x[-1:], codebook)
    assert_same(alone, got[-1:], what="the last point alone")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.sampled_from([0.1, 0.3, 1 / 3, 0.7]), st.integers(-2, 2))
def test_pick_subtracts_what_the_portable_backend_does_to_the_last_bit(device, run_before, slope, last_bits):
    """The blank is left a few last bits above or below its rival, so that one rounding more would show."""
    penalty = np.float32(min(2.5, slope * max(0, run_before - 10)))
    x = np.zeros((2, 70), np.float32)
    x[:, 9], x[:, 33] = 4 + penalty, 4
    x[:, 9] += last_bits * np.spacing(np.float32(4) + penalty)
    runs, on = words(run_before, run_before), words(1, 1)
    expected, after = words(-1, -1), runs.copy()
    portable_select.pick(expected, x, after, 9, 10, slope, 2.5, on)
    out, held = device.upload(words(-1, -1)), device.upload(runs)
    select.pick(out, device.upload(x), held, 9, 10, slope, 2.5, device.upload(on), device=device)
    assert_same(device.fetch(out).wait(), expected, what="picked")
    assert_same(device.fetch(held).wait(), after, what="run")


def test_pick_leaves_idle_lanes_and_logits_alone(device):
    x = normal(4, 3000)
    x[:, 7] = 100
    out, run_, on = (device.upload(w) for w in (words(-1, -1, -1, -1), words(4, 5, 6, 7), words(0, 1, 0, 1)))
    logits = device.upload(x)
    select.pick(out, logits, run_, 7, 100, 0.5, 4.0, on, device=device)
    assert device.fetch(out).wait().tolist() == [0, 7, 0, 7]
    assert device.fetch(run_).wait().tolist() == [4, 6, 6, 8]
    assert_same(device.fetch(logits).wait(), x, what="logits")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(0, 5))
def test_advance_of_any_number_of_lanes(device, lanes, length):
    token, picked, prompt = np.arange(lanes), np.arange(lanes) + 100, np.arange(length) + 1000
    position, active = np.arange(lanes) % 9, np.arange(lanes) % 3 > 0
    host = [np.asarray(array, np.int32) for array in (token, picked, prompt, position, active)]
    got = run(device, select.advance, *host)
    assert_same(got, reference.advance(*host), what="advance")


# --- what does not fit


@pytest.mark.parametrize(
    ("op", "shapes", "rest"),
    [
        (norm.rms_norm, [(2, 8), (2, 9), (9,)], (1e-5,)),
        (norm.rms_norm, [(2, 8), (2, 8), (1,)], (1e-5,)),
        (norm.layer_norm, [(2, 8), (2, 8), (8,), (9,)], (1e-5,)),
        (pointwise.add, [(2, 8), (2, 8), (1, 8)], ()),
        (pointwise.gelu, [(2, 8), (16,)], ()),
        (select.argmax, [(2,), (3, 8)], ()),
        (select.argmax, [(2,), (2, 0)], ()),
        (select.nearest, [(2,), (2, 8), (5, 9)], ()),
        (select.nearest, [(2,), (2, 8), (0, 8)], ()),
        (select.advance, [(2,), (2,), (3,), (3,), (2,)], ()),
    ],
)
def test_what_does_not_fit_is_refused(device, op, shapes, rest):
    arrays = [device.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(ShapeError, match=op.__name__):
        op(*arrays, *rest, device=device)


def test_pick_refuses_a_run_of_another_size(device):
    out, x, run_ = (device.zeros(shape, np.float32) for shape in ((2,), (2, 8), (3,)))
    with pytest.raises(ShapeError, match="pick"):
        select.pick(out, x, run_, 0, 1, 1.0, 1.0, out, device=device)
