"""Normalisation over the last axis; sums of squares are BLAS dot products, one per row."""

from __future__ import annotations

import numpy as np


def rms_norm(
    out: np.ndarray, x: np.ndarray, gain: np.ndarray, eps: float, scale: np.ndarray | None = None
) -> None:
    """out = x / sqrt(mean(x^2) + eps) * gain [C] (* (1 + scale [C]))."""
    np.multiply(x, _inverse_rms(x, eps), out=out)
    np.multiply(out, gain, out=out)
    if scale is not None:
        np.multiply(out, 1 + scale, out=out)


def layer_norm(out: np.ndarray, x: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> None:
    """out = (x - mean) / sqrt(var + eps) * gain + bias."""
    np.subtract(x, x.mean(axis=-1, keepdims=True), out=out)
    np.multiply(out, _inverse_rms(out, eps), out=out)
    np.multiply(out, gain, out=out)
    np.add(out, bias, out=out)


def _inverse_rms(x: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(mean(x^2) + eps), with the last axis kept at length one."""
    squares = np.matmul(x[..., None, :], x[..., :, None])[..., 0]
    squares /= x.shape[-1]
    squares += eps
    np.sqrt(squares, out=squares)
    return np.reciprocal(squares, out=squares)
