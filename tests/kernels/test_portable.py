"""What only the portable backend promises: its budget, its views, its error function."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from kernels import QuantTensor, quant
from kernels.portable import pointwise
from kernels.portable.backend import Portable
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import ATOL_DOT, RTOL_POINT, normal, words

RTOL_ERF = 5e-7  # the fit's 5.2e-8, and a dozen f32 roundings


def test_erf_is_close_to_that_of_the_c_library():
    x = np.concatenate([np.linspace(-6, 6, 20_001), np.geomspace(1e-30, 6, 10_001)]).astype(np.float32)
    expected = np.array([math.erf(float(value)) for value in x])
    assert_close(pointwise.erf(x), expected, rtol=RTOL_ERF, atol=0, what="erf")


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("items", [1, 4, 20])
def test_stored_and_widened_weights_give_the_same_products(kind, items):
    dense = normal(300, 1024)  # three tiles
    raw = quant.pack(dense, kind).reshape(-1)
    x, outs = normal(items, 1024, seed=1), []
    for ops in (Portable(), Portable(widen_bytes=0)):
        w, out = ops.adopt(raw, kind, dense.shape), ops.zeros((items, 300))
        ops.linear(out, x, w)
        outs.append(out)
        assert isinstance(w, QuantTensor) == (len(outs) == 2)
    assert_close(outs[1], outs[0], rtol=RTOL_POINT, atol=2 * ATOL_DOT, what=kind)


def test_widening_stops_at_the_budget():
    ops = Portable(widen_bytes=2 * 4 * 8 * 32)
    raw = quant.pack(normal(8, 32), "q4_0").reshape(-1)
    kinds = [type(ops.adopt(raw, "q4_0", (8, 32))) for _ in range(4)]
    assert kinds == [np.ndarray, np.ndarray, QuantTensor, QuantTensor]


def test_a_smaller_matrix_still_fits_what_a_larger_one_left():
    ops = Portable(widen_bytes=4 * 32)
    large, small = (quant.pack(normal(rows, 32), "q4_0").reshape(-1) for rows in (2, 1))
    assert isinstance(ops.adopt(large, "q4_0", (2, 32)), QuantTensor)
    assert isinstance(ops.adopt(small, "q4_0", (1, 32)), np.ndarray)


def test_f32_and_stored_weights_are_views_of_their_file():
    ops = Portable(widen_bytes=0)
    f32, q4 = quant.pack(normal(8, 32), "f32").reshape(-1), quant.pack(normal(8, 32), "q4_0").reshape(-1)
    assert np.shares_memory(ops.adopt(f32, "f32", (8, 32)), f32)
    assert np.shares_memory(ops.adopt(q4, "q4_0", (8, 32)).tiles[0], q4)


def test_unaligned_f32_is_copied_to_where_blas_can_read_it():
    raw = np.zeros(4 * 32 + 1, np.uint8)[1:]
    raw[:] = quant.pack(normal(1, 32), "f32").reshape(-1)
    adopted = Portable().adopt(raw, "f32", (1, 32))
    assert adopted.flags.aligned
    assert_same(adopted, normal(1, 32), what="weights")


def test_a_stored_product_needs_one_tile_of_memory():
    ops, x = Portable(widen_bytes=0), normal(1, 1024)
    raw = np.zeros(quant.nbytes("q4_0", (4096, 1024)), np.uint8)  # 16 MiB once widened
    w, out = ops.adopt(raw, "q4_0", (4096, 1024)), ops.zeros((1, 4096))
    tracemalloc.start()
    ops.linear(out, x, w)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


def test_idle_lanes_that_have_not_begun_attend_to_nothing():
    ops = Portable()
    ring, out = ops.ring(2, 1, 8, 4), ops.zeros((2, 3, 1, 4))
    k = normal(2, 3, 1, 4)
    ops.append(ring, k, k, words(0, 1))
    out[:] = np.nan
    ops.attend(out, k, ring, 4)
    assert not out[0].any()
    assert np.isfinite(out[1]).all()
