"""Every op without state, of every backend, against the float64 reference: odd sizes, one row, several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ShapeError, reference
from kernels.backend import BACKENDS
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import (
    ATOL_DOT,
    ATOL_POINT,
    ATOL_TURN,
    KINDS,
    RTOL_POINT,
    assert_within,
    normal,
    product_limit,
    read,
    weight,
    words,
)
from tests.kernels.conftest import SUITE


def test_the_suite_covers_every_backend():
    assert set(BACKENDS) <= {row.backend for row in SUITE}


# --- linear


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "columns", "lead"),
    [
        (1, 32, (1, 1)),
        (7, 64, (1,)),
        (129, 96, (3,)),
        (33, 1024, (2, 5)),
        (300, 1024, (1, 1)),  # more than one tile of rows
        (300, 1024, (3,)),
        (40, 32, (2, 17)),
    ],
)
def test_linear(ops, kind, rows, columns, lead):
    x, bias = normal(*lead, columns), normal(rows, seed=1)
    w, dense = weight(ops, normal(rows, columns, seed=2), kind)
    for some_bias in (None, bias):
        out = ops.zeros((*lead, rows))
        ops.linear(out, ops.upload(x), w, None if some_bias is None else ops.upload(some_bias))
        expected = reference.linear(x, dense, some_bias)
        limit = product_limit(ops, kind, x.size // columns)
        assert_within(read(ops, out), expected, limit, what=f"linear {kind}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "items"), [(48, 64, 65), (33, 96, 130), (5, 128, 33)])
def test_linear_of_many_rows_of_x(ops, kind, rows, columns, items):
    x, bias = normal(items, columns), normal(rows, seed=1)
    w, dense = weight(ops, normal(rows, columns, seed=2), kind)
    out = ops.zeros((items, rows))
    ops.linear(out, ops.upload(x), w, ops.upload(bias))
    expected = reference.linear(x, dense, bias)
    assert_within(read(ops, out), expected, product_limit(ops, kind, items), what=f"linear {kind}")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_linear_takes_odd_columns_in_dense_kinds(ops, kind):
    x = normal(2, 3, 37)
    w, dense = weight(ops, normal(5, 37, seed=2), kind)
    out = ops.zeros((2, 3, 5))
    ops.linear(out, ops.upload(x), w)
    assert_within(read(ops, out), reference.linear(x, dense), product_limit(ops, kind, 6), what=kind)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.sampled_from(KINDS))
def test_linear_treats_rows_of_x_alike(ops, rows, items, blocks, kind):
    x = normal(items, 32 * blocks)
    w, dense = weight(ops, normal(rows, 32 * blocks, seed=2), kind)
    out, alone = ops.zeros((items, rows)), ops.zeros((1, rows))
    ops.linear(out, ops.upload(x), w)
    together, apart = read(ops, out), np.empty((items, rows), np.float32)
    for i in range(items):
        ops.linear(alone, ops.upload(x[i : i + 1]), w)
        apart[i] = read(ops, alone)[0]
    terms = np.sqrt(x**2 @ (dense**2).T)  # the size of a product before its terms cancel
    limit = product_limit(ops, kind, items)
    assert_within(together, apart, limit, what=kind, size=terms)


def test_linear_refuses_what_does_not_fit(ops):
    w, _ = weight(ops, normal(4, 32), "f32")
    with pytest.raises(ShapeError, match="linear"):
        ops.linear(ops.zeros((1, 4)), ops.upload(normal(1, 31)), w)
    with pytest.raises(ShapeError, match="linear"):
        ops.linear(ops.zeros((1, 5)), ops.upload(normal(1, 32)), w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [words(0), words(6, 0, 6, 3), words(5, 2).reshape(2, 1)])
def test_embed(ops, kind, ids):
    table, dense = weight(ops, normal(7, 96), kind)
    out = ops.zeros((*ids.shape, 96))
    ops.embed(out, ops.upload(ids), table)
    assert_close(read(ops, out), reference.embed(ids, dense), rtol=0, atol=0, what=f"embed {kind}")


@pytest.mark.parametrize("stray", [-1, 7, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("kind", KINDS)
def test_embed_of_ids_outside_the_table(ops, kind, stray):
    """Refused where ids can be seen; a device, which cannot raise, gives the nearest row of the table."""
    table, dense = weight(ops, normal(7, 32), kind)
    out, ids = ops.zeros((2, 32)), ops.upload(words(0, stray))
    if ops.name == "portable":
        with pytest.raises(ShapeError, match="7 rows"):
            ops.embed(out, ids, table)
    else:
        ops.embed(out, ids, table)
        assert_same(read(ops, out), dense[[0, 0 if stray < 0 else 6]], what=f"embed {kind}")


# --- norm

SHAPES = [(1, 1, 5), (3, 2, 192), (1, 1, 1280)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_rms_norm(ops, shape, scaled):
    x, gain = 3 * normal(*shape), normal(shape[-1], seed=1)
    scale = normal(shape[-1], seed=2) if scaled else None
    out = ops.zeros(shape)
    ops.rms_norm(out, ops.upload(x), ops.upload(gain), 1e-5, None if scale is None else ops.upload(scale))
    expected = reference.rms_norm(x, gain, 1e-5, scale)
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=ATOL_POINT, what="rms_norm")


def test_rms_norm_of_silence_is_silence(ops):
    out = ops.upload(np.zeros((1, 2, 8), np.float32))
    ops.rms_norm(out, out, ops.upload(normal(8)), 1e-5)
    assert_close(read(ops, out), np.zeros((1, 2, 8)), rtol=0, atol=0, what="silence")


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(ops, shape):
    x, gain, bias = 3 * normal(*shape) + 1, normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    out = ops.zeros(shape)
    ops.layer_norm(out, ops.upload(x), ops.upload(gain), ops.upload(bias), 1e-5)
    expected = reference.layer_norm(x, gain, bias, 1e-5)
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=4 * ATOL_POINT, what="layer_norm")


def test_norms_work_in_place(ops):
    x, gain = normal(2, 3, 24), normal(24, seed=1)
    held = ops.upload(x)
    ops.rms_norm(held, held, ops.upload(gain), 1e-5)
    expected = reference.rms_norm(x, gain, 1e-5)
    assert_close(read(ops, held), expected, rtol=RTOL_POINT, atol=ATOL_POINT, what="rms")
    held = ops.upload(x)
    ops.layer_norm(held, held, ops.upload(gain), ops.upload(gain), 1e-5)
    expected = reference.layer_norm(x, gain, gain, 1e-5)
    assert_close(read(ops, held), expected, rtol=RTOL_POINT, atol=4 * ATOL_POINT, what="layer")


# --- rope


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize(
    ("shape", "position"),
    [((1, 1, 1, 2), [0]), ((2, 3, 4, 64), [7, 0]), ((3, 5, 2, 10), [10_000_000, 749, 2**31 - 8])],
)
def test_rope(ops, shape, position, theta):
    x, at = normal(*shape), words(*position)
    held = ops.upload(x)
    ops.rope(held, ops.upload(at), theta)
    assert_close(read(ops, held), reference.rope(x, at, theta), rtol=RTOL_POINT, atol=ATOL_TURN, what="rope")


def test_rope_follows_a_position_that_changes_in_place(ops):
    x, at = normal(1, 2, 2, 8), ops.upload(words(3))
    for position in (3, 4):
        held = ops.upload(x)
        ops.rope(held, ops.upload(words(position), out=at), 1e6)
        expected = reference.rope(x, words(position), 1e6)
        assert_close(read(ops, held), expected, rtol=RTOL_POINT, atol=ATOL_TURN, what=f"position {position}")


def test_rope_keeps_scores_relative(ops):
    """q . k depends on the distance alone, also ten million positions from the start."""
    q, k = normal(1, 1, 1, 64), normal(1, 1, 1, 64, seed=1)
    scores = []
    for start in (0, 10_000_000):
        turned_q, turned_k = ops.upload(q), ops.upload(k)
        ops.rope(turned_q, ops.upload(words(start + 5)), 1e6)
        ops.rope(turned_k, ops.upload(words(start)), 1e6)
        scores.append(np.sum(read(ops, turned_q).astype(np.float64) * read(ops, turned_k)))
    assert_close(scores[1], scores[0], rtol=0, atol=ATOL_DOT, what="q . k")


# --- pointwise

WIDE = np.concatenate([np.linspace(-12, 12, 997), [-1e4, -89, -0.0, 0.0, 1e-20, 89, 1e4]]).astype(np.float32)


@pytest.mark.parametrize("op", ["gelu", "elu"])
@pytest.mark.parametrize("shape", [(1, 1, 1004), (2, 2, 251)])
def test_one_operand(ops, op, shape):
    x = WIDE.reshape(shape)
    expected = getattr(reference, op)(x)
    out, held = ops.zeros(shape), ops.upload(x)
    getattr(ops, op)(out, held)
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=ATOL_POINT, what=op)
    getattr(ops, op)(held, held)
    assert_same(read(ops, held), read(ops, out), what=f"{op} in place")


@pytest.mark.parametrize("op", ["add", "silu_mul"])
@pytest.mark.parametrize("shape", [(1, 1, 1004), (2, 2, 251)])
def test_two_operands(ops, op, shape):
    x, y = WIDE.reshape(shape), normal(*shape)
    expected = getattr(reference, op)(x, y)
    out, first, second = ops.zeros(shape), ops.upload(x), ops.upload(y)
    getattr(ops, op)(out, first, second)
    assert_close(read(ops, out), expected, rtol=RTOL_POINT, atol=ATOL_POINT, what=op)
    getattr(ops, op)(first, first, second)
    assert_same(read(ops, first), read(ops, out), what=f"{op} into its first operand")
    getattr(ops, op)(second, ops.upload(x), second)
    assert_same(read(ops, second), read(ops, out), what=f"{op} into its second operand")


# --- select


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1000), (2, 5, 33)])
def test_argmax(ops, shape):
    x = np.round(normal(*shape) * 4)  # many ties
    out = ops.zeros(shape[:-1], "i32")
    ops.argmax(out, ops.upload(x))
    assert_same(read(ops, out), reference.argmax(x), what="argmax")


@pytest.mark.parametrize(("shape", "rows"), [((1, 1), 1), ((2, 3, 5), 7), ((4, 64), 300)])
def test_nearest(ops, shape, rows):
    x, codebook = normal(*shape), normal(rows, shape[-1], seed=1)
    out = ops.zeros(shape[:-1], "i32")
    ops.nearest(out, ops.upload(x), ops.upload(codebook))
    assert_same(read(ops, out), reference.nearest(x, codebook), what="nearest")


def test_nearest_tells_close_rows_apart_and_takes_the_first_of_equal_ones(ops):
    codebook = np.float32(1000) + np.array([[0.5], [0.25], [0.25], [0.0]], np.float32)
    out = ops.zeros((2,), "i32")
    ops.nearest(out, ops.upload(np.array([[1000.25], [1000.3]], np.float32)), ops.upload(codebook))
    assert_same(read(ops, out), words(1, 1), what="nearest")


@pytest.mark.parametrize("run", [0, 9, 10, 11, 14, 1000])
@pytest.mark.parametrize("lead", [-1.0, 0.25, 1.75, 6.0])
def test_pick(ops, run, lead):
    """The blank leads by `lead`; the guard takes 0.5 per blank past 10, at most 4."""
    x = np.minimum(normal(3, 40), 0)
    x[:, 17], x[:, 5] = 2.0, 2.0 + lead
    active, runs = words(1, 0, 1), words(run, 3, 0)
    out, held = ops.zeros((3,), "i32"), ops.upload(runs)
    logits = ops.upload(x)
    ops.pick(out, logits, held, 5, 10, 0.5, 4.0, ops.upload(active))
    expected, after = reference.pick(x, runs, 5, 10, 0.5, 4.0, active)
    assert_same(read(ops, out)[active > 0], expected[active > 0], what="picked")
    assert_same(read(ops, held), after, what="run")
    assert_same(read(ops, logits), x, what="logits are left alone")


def test_pick_lets_speech_through_a_long_run_of_blanks(ops):
    x = np.array([[5.0, 3.0, 0.0]], np.float32)
    out, run = ops.zeros((1,), "i32"), ops.upload(words(205))
    ops.pick(out, ops.upload(x), run, 0, 200, 0.5, 7.0, ops.upload(words(1)))
    assert (read(ops, out)[0], read(ops, run)[0]) == (1, 0)  # 5 - 0.5 * 5 < 3


def test_advance(ops):
    token, picked, prompt = words(9, 9, 9, 9, 9), words(50, 51, 52, 53, 54), words(1, 32, 33)
    position, active = words(0, 2, 3, 1, 700), words(1, 1, 1, 0, 1)
    held = ops.upload(token)
    ops.advance(held, *(ops.upload(array) for array in (picked, prompt, position, active)))
    assert_same(read(ops, held), reference.advance(token, picked, prompt, position, active), what="token")
    assert_same(read(ops, held), words(1, 33, 52, 9, 54), what="token by hand")


def test_advance_may_pick_the_token_itself(ops):
    held = ops.upload(words(9, 8, 7))
    ops.advance(held, held, *(ops.upload(array) for array in (words(1, 32), words(0, 2, 1), words(1, 1, 0))))
    assert_same(read(ops, held), words(1, 8, 7), what="token")
