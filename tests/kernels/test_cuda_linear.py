"""Matrix products, look-ups and convolution of the CUDA backend, beyond what the op suite asks of each.

Every kernel, at both ends of the number of rows it takes; layouts bit by bit; rows that half precision cannot
hold. On the emulator under several schedules, with NaN in memory that was not written, and on a card.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ShapeError, quant, reference
from kernels.cuda import conv, linear, q4, weights
from kernels.cuda.device import Device
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import ATOL_DOT, BF16, F32, HALF, RTOL_POINT, TWO_TERMS, normal, words
from tests.kernels.devices import CARD, emulated, opened

BIT = 2.0**-24  # of an f32

FORMS = ("f32", "f16", "bf16", "q8_0", "fragment", "rows")  # kinds, and q4_0 in its two layouts
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 32, 33, 63, 64, 65, 128, 130)  # around every change of kernel


@pytest.fixture(scope="module", params=[0, 1, 2, CARD])
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


def adopted(device: Device, dense: np.ndarray, form: str):
    """`dense` on the device in one of FORMS, and the f32 values that are left of it."""
    kind = "q4_0" if form in ("fragment", "rows") else form
    raw = quant.pack(dense, kind).reshape(-1)
    left = quant.unpack(raw, kind, dense.shape)
    if kind == "f32":
        return device.upload(left), left
    return linear.adopt(raw, kind, dense.shape, layout=form, device=device), left


def product(device: Device, x: np.ndarray, w, bias: np.ndarray | None = None) -> np.ndarray:
    """x @ w^T (+ bias), into memory that holds NaN."""
    out = device.upload(np.full((*x.shape[:-1], w.shape[0]), np.nan, np.float32))
    linear.linear(out, device.upload(x), w, None if bias is None else device.upload(bias), device=device)
    return device.fetch(out).wait()


def limit(form: str, items: int) -> float:
    """The class of each product, as the table of linear.py has it."""
    if form == "fragment":
        return F32 if items <= 128 else HALF
    if form == "rows":
        return TWO_TERMS if items <= 4 else HALF
    if form == "q8_0":
        return F32 if items <= 8 else HALF
    return {"f32": F32, "f16": HALF, "bf16": BF16}[form] if items > 64 else F32


def assert_rows_near(actual: np.ndarray, x: np.ndarray, w: np.ndarray, limit: float, what: str) -> None:
    """Every row by itself against float64: the largest error by |x| times the longest row of w."""
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    size = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(w.astype(np.float64), axis=1).max()
    gap = np.abs(actual.astype(np.float64) - expected).max(axis=1)
    bad = np.flatnonzero(~(gap <= limit * size))
    assert not len(bad), f"{what}: row {bad[0]} is off by {gap[bad[0]]:.3g}, its size is {size[bad[0]]:.3g}"


def assert_class(actual: np.ndarray, expected: np.ndarray, limit: float, what: str) -> None:
    error = np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error <= limit, f"{what}: error {error:.3g} by norm, at most {limit:g}"


# --- products


@pytest.mark.parametrize("form", FORMS)
def test_every_number_of_rows_keeps_its_class(device, form):
    w, dense = adopted(device, normal(40, 224, seed=1), form)  # half a tile, half a step
    bias = normal(40, seed=2)
    for items in ROWS:
        x = normal(items, 224)
        expected = x.astype(np.float64) @ dense.astype(np.float64).T
        what = f"{form}, {items} rows"
        assert_class(product(device, x, w), expected, limit(form, items), what)
        assert_class(product(device, x, w, bias), expected + bias, limit(form, items), f"{what}, bias")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(("fragment", "rows", "q8_0")), st.integers(1, 70), st.integers(1, 9), st.integers(1, 70)
)
def test_quantised_products_of_any_shape(device, form, rows, blocks, items):
    w, dense = adopted(device, normal(rows, 32 * blocks, seed=1), form)
    x = normal(items, 32 * blocks)
    allowed = 2 * limit(form, items)  # the class is of a norm, and of a few outputs the worst may be all
    assert_rows_near(product(device, x, w), x, dense, allowed, f"{form} {rows} x {32 * blocks}")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(("f32", "f16", "bf16")), st.integers(1, 40), st.integers(1, 300), st.integers(1, 20))
def test_dense_products_of_any_shape(device, form, rows, columns, items):
    w, dense = adopted(device, normal(rows, columns, seed=1), form)
    x = normal(items, columns)
    assert_rows_near(product(device, x, w), x, dense, F32, f"{form} {rows} x {columns}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("items", [4, 16, 130])
def test_rows_that_half_cannot_hold_are_as_exact_as_others(device, form, items):
    """Outliers past 65504, rows of 1e-30 and 1e30, and a row of zeros."""
    w, dense = adopted(device, normal(24, 96, seed=1), form)
    x = normal(items, 96)
    x[0, 5], x[0, 60] = 1e6, -3e5
    x[1] *= 1e-30
    x[2] *= 1e30
    x[3] = 0
    got = product(device, x, w)
    assert_rows_near(got, x, dense, 2 * limit(form, items), form)
    assert not got[3].any()


def test_the_largest_and_the_smallest_numbers_survive_in_fragments(device):
    w, dense = adopted(device, normal(16, 64, seed=1) / 64, "fragment")
    for items in (4, 5):
        x = np.zeros((items, 64), np.float32)
        x[0, 0], x[1, 1], x[2, 2] = 3e38, 2.0**-126, 2.0**-149
        x[3, 3], x[3, 4] = 3e38, 1.0
        expected = x.astype(np.float64) @ dense.astype(np.float64).T
        least = 2.0**-149  # the last bit of the smallest numbers
        assert_close(product(device, x, w), expected, rtol=2 * BIT, atol=least, what="extremes")


@pytest.mark.parametrize(
    ("form", "items"),
    [("fragment", 3), ("fragment", 8), ("fragment", 40), ("fragment", 128), ("rows", 3)]
    + [(form, items) for form in ("q8_0", "f16", "bf16", "f32") for items in (3, 8)],
)
def test_a_row_of_x_owes_nothing_to_its_neighbours(device, form, items):
    """Bit for bit, in all kernels of ours; cuBLAS promises it to nobody."""
    w, _ = adopted(device, normal(24, 160, seed=1), form)
    x, other = normal(items, 160), 1e3 * normal(items, 160, seed=3)
    other[1], other[-1] = x[1], np.nan
    assert_same(product(device, other, w)[1], product(device, x, w)[1], what=f"{form} row 1")


@pytest.mark.parametrize("processors", [1, 4, 200])
@pytest.mark.parametrize("items", [1, 4, 6, 20, 33])
def test_fragments_do_not_depend_on_how_a_device_shares_them_out(processors, items):
    """One block for many tiles, many warps for one tile, and the columns cut in parts."""
    device = emulated(processors=processors)
    w, dense = adopted(device, normal(520, 1056, seed=1), "fragment")
    parts = q4.plan(items, len(w.tiles[0]), 1056, device=device, in_parts=True).parts
    assert (parts > 1) == (processors == 200 and items > q4.STAGED_ROWS)
    x, bias = normal(items, 1056), normal(520, seed=2)
    expected = x.astype(np.float64) @ dense.astype(np.float64).T + bias
    assert_class(product(device, x, w, bias), expected, F32, f"{processors} processors")


def test_few_rows_too_long_for_shared_memory_are_split_beforehand():
    device = emulated(capability=(7, 5))
    w, dense = adopted(device, normal(16, 9216, seed=1), "fragment")
    x = normal(2, 9216)
    plans = [q4.plan(rows, 1, 9216, device=device).capacity for rows in (1, 2)]
    assert plans == [q4.STAGED_ROWS, q4.CAPACITIES[0]]
    expected = x.astype(np.float64) @ dense.astype(np.float64).T
    assert_class(product(device, x, w), expected, F32, "2 rows of 9216")


@given(
    rows=st.integers(1, 64), tiles=st.integers(1, 20_000), steps=st.integers(1, 300),
    processors=st.integers(1, 200), in_parts=st.booleans(),
)  # fmt: skip
def test_a_plan_leaves_no_tile_out_and_no_block_idle(rows, tiles, steps, processors, in_parts):
    size = SimpleNamespace(shared_bytes=99 << 10, processors=processors)
    plan = q4.plan(rows, tiles, steps * q4.STEP, device=size, in_parts=in_parts)
    warps, share = plan.block[0] // 32, int(plan.share)
    assert rows <= plan.capacity
    assert share <= steps
    assert warps % share == 0
    assert 0 < plan.shared <= size.shared_bytes
    under_way = plan.grid[0] * warps // share  # tiles
    assert under_way >= tiles or plan.capacity == q4.STAGED_ROWS
    assert (plan.grid[0] - 1) * warps // share < tiles
    assert plan.grid[1:] == ((plan.parts,) if plan.parts > 1 else ())
    assert (plan.parts - 1) * -(-steps // plan.parts) < steps
    if plan.capacity == q4.STAGED_ROWS:  # all blocks are there at once
        there = size.shared_bytes + q4.TAKEN_BYTES
        assert there // (plan.shared + q4.TAKEN_BYTES) * processors >= plan.grid[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_product_can_be_recorded_once_it_has_run(device, form):
    w, dense = adopted(device, normal(24, 96, seed=1), form)
    for items in (1, 6, 12, 70, 140):
        x = device.upload(np.zeros((items, 96), np.float32))
        bias, out = device.upload(normal(24, seed=2)), device.upload(np.zeros((items, 24), np.float32))
        linear.linear(out, x, w, bias, device=device)
        replay = device.record(lambda out=out, x=x, bias=bias: linear.linear(out, x, w, bias, device=device))
        device.upload(normal(items, 96), out=x)
        replay()
        expected = normal(items, 96).astype(np.float64) @ dense.astype(np.float64).T + normal(24, seed=2)
        assert_class(device.fetch(out).wait(), expected, limit(form, items), f"{form}, {items} rows")


def test_weights_are_widened_by_slices(device, monkeypatch):
    """Slices of 32 rows here, of a matrix that is no multiple of them and ends in half a tile."""
    monkeypatch.setattr(linear, "WIDENED_WEIGHTS", 32 * 96)
    bias = normal(72, seed=2)
    for form in ("fragment", "rows", "q8_0"):
        w, dense = adopted(device, normal(72, 96, seed=1), form)
        x = normal(130, 96)
        expected = x.astype(np.float64) @ dense.astype(np.float64).T + bias
        assert_class(product(device, x, w, bias), expected, HALF, form)


def test_linear_refuses_a_bias_that_does_not_fit(device):
    w, _ = adopted(device, normal(24, 32), "fragment")
    with pytest.raises(ShapeError, match=r"linear: weight \(24, 32\) gives 24 values, but bias is \(1,\)"):
        product(device, normal(1, 32), w, normal(1))


@pytest.mark.parametrize("form", FORMS)
def test_products_of_no_rows_leave_nothing_undone(device, form):
    w, _ = adopted(device, normal(24, 32), form)
    assert product(device, np.zeros((0, 32), np.float32), w).shape == (0, 24)


# --- layouts


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(("fragment", "rows", "q8_0")), st.integers(1, 70), st.integers(1, 9))
def test_layouts_keep_every_weight(device, form, rows, blocks):
    """Looked up they are the file's to the last bit, widened to f16 they are those rounded once."""
    w, dense = adopted(device, normal(rows, 32 * blocks), form)
    out = device.upload(np.full(dense.shape, np.nan, np.float32))
    linear.embed(out, device.upload(np.arange(rows, dtype=np.int32)), w, device=device)
    assert_same(device.fetch(out).wait() + 0.0, dense + 0.0, what=f"{form} looked up")  # zeros have no sign
    wide = device.upload(np.full(dense.shape, np.nan, np.float16))
    weights.dequantise(wide, w, device=device)
    zero = np.float16(0)
    assert_same(device.fetch(wide).wait() + zero, dense.astype(np.float16) + zero, what=f"{form} widened")


def test_what_pads_fragments_weighs_nothing(device):
    w, _ = adopted(device, normal(19, 96), "fragment")
    nibbles, scales = (device.fetch(plane).wait() for plane in w.tiles)
    assert nibbles.shape == (2, 2, 32, 4) and scales.shape == (2, 2, 8, 4)
    assert not scales[1, :, 3:, 0::2].any(), "rows 19 to 23"
    assert not scales[1, :, :, 1::2].any(), "rows 24 to 31"
    assert not scales[:, 1, :, 2:].any(), "columns 96 to 127"
    assert (nibbles[:, 1, :, 2:] == 0x88888888).all(), "columns 96 to 127"


@pytest.mark.parametrize("form", ["fragment", "rows", "q8_0"])
def test_files_are_laid_out_piece_by_piece(device, form, monkeypatch):
    dense = normal(100, 64)
    whole, _ = adopted(device, dense, form)
    monkeypatch.setattr(weights, "PIECE_BYTES", 1500)  # less than half of the file, and no multiple of a tile
    pieces, _ = adopted(device, dense, form)
    for one, other in zip(whole.tiles, pieces.tiles, strict=True):
        assert_same(device.fetch(other).wait(), device.fetch(one).wait(), what=form)


@pytest.mark.parametrize("form", FORMS)
def test_ids_outside_the_table_give_its_ends(device, form):
    table, dense = adopted(device, normal(7, 64), form)
    out = device.upload(np.full((4, 64), np.nan, np.float32))
    linear.embed(out, device.upload(words(-1, 7, -(2**31), 2**31 - 1)), table, device=device)
    assert_close(device.fetch(out).wait(), dense[[0, 6, 0, 6]], rtol=0, atol=0, what=form)


# --- conv


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 5, 130]), st.integers(1, 4), st.integers(0, 7),
    st.integers(1, 20),
)  # fmt: skip
def test_conv1d_moves_its_tail_whatever_the_lengths(device, lanes, steps, channels, stride, kept, rows):
    """Also a tail longer than the input, which moves within itself, and none at all."""
    tail, x = normal(lanes, kept, channels), normal(lanes, steps * stride, channels, seed=1)
    w, bias = normal(rows, channels, kept + stride, seed=2), normal(rows, seed=3)
    active = words(*[lane != 1 for lane in range(lanes)])
    held = device.upload(tail)
    out = device.upload(np.full((lanes, steps, rows), np.nan, np.float32))
    sides = (device.upload(array) for array in (x, w, bias))
    conv.conv1d(out, held, *sides, stride, device.upload(active), device=device)
    expected, after = reference.conv1d(tail, x, w, bias, stride, active)
    assert_close(device.fetch(out).wait(), expected, rtol=RTOL_POINT, atol=ATOL_DOT, what="conv1d")
    assert_same(device.fetch(held).wait(), after, what="tail")
