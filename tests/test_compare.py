"""The comparison helpers say where and by how much."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_close, assert_same


def test_a_failure_names_the_first_bad_index_both_values_and_the_largest_difference():
    actual = np.array([[1.0, 2.5], [3.0, 9.0]])
    message = r"2 of 4 differ.*\[0, 1\]: .*2\.5.*2\.0.*difference 5 at \[1, 1\]"
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, [[1.0, 2.0], [3.0, 4.0]], rtol=0, atol=0.1, what="rows")


@pytest.mark.parametrize("actual", [[1.0], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf]])
def test_shapes_nan_and_infinity_do_not_slip_through(actual):
    with pytest.raises(AssertionError, match="numbers"):
        assert_close(actual, [1.0, 2.0], rtol=1, atol=1, what="numbers")


def test_nan_meets_nan_and_infinity_its_own_sign():
    values = [np.nan, np.inf, -np.inf]
    assert_close(values, values, rtol=0, atol=0, what="special")
    with pytest.raises(AssertionError):
        assert_close([np.inf], [-np.inf], rtol=1, atol=1, what="signs")


def test_same_means_every_bit():
    assert_same(np.array([np.nan, -0.0]), np.array([np.nan, -0.0]), what="bits")
    with pytest.raises(AssertionError, match=r"bits: first bit difference at \[1\]"):
        assert_same(np.array([1.0, -0.0]), np.array([1.0, 0.0]), what="bits")
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(np.zeros(1, np.float32), np.zeros(1), what="bits")
