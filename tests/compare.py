"""How arrays are compared: a failure prints the first bad index, both values and the largest difference."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_close(actual: Any, expected: Any, *, rtol: float, atol: float, what: str) -> None:
    """Same shapes, |actual - expected| <= atol + rtol * |expected|; NaN and infinity meet only their like.

    what : names the quantity in the message, as in "attend q4_0 lane 1"
    """
    got, want = np.asarray(actual), np.asarray(expected)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(got - want)
        near = np.isfinite(want) & (gap <= atol + rtol * np.abs(want))  # no infinite bound
        good = near | (got == want) | (np.isnan(got) & np.isnan(want))
    if good.all():
        return
    first = tuple(int(i) for i in np.argwhere(~good)[0])
    worst = tuple(int(i) for i in np.argwhere(gap == np.nanmax(gap))[0]) if np.isfinite(gap).any() else first
    raise AssertionError(
        f"{what}: {int((~good).sum())} of {good.size} differ (rtol {rtol:g}, atol {atol:g}); "
        f"first at {list(first)}: {got[first]!r}, expected {want[first]!r}; "
        f"largest difference {gap[worst]:.3g} at {list(worst)}"
    )


def assert_same(actual: Any, expected: Any, *, what: str) -> None:
    """Equal bit for bit: dtype, shape and every byte, so -0.0 is not 0.0 and a NaN equals itself."""
    got, want = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if got.tobytes() == want.tobytes():
        return
    differs = got.reshape(-1).view(np.uint8) != want.reshape(-1).view(np.uint8)
    flat = int(np.flatnonzero(differs)[0]) // got.dtype.itemsize
    first = tuple(int(i) for i in np.unravel_index(flat, got.shape))
    raise AssertionError(
        f"{what}: first bit difference at {list(first)}: {got[first]!r}, expected {want[first]!r}"
    )
