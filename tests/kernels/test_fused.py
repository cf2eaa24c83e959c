"""Composite ops: equal to the reference's basic ops in a row, and open to a backend's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import fused, reference
from kernels.portable.backend import Portable
from kernels.tensor import Ring
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import (
    F32,
    assert_kept,
    assert_within,
    normal,
    product_limit,
    read,
    read_ring,
    weight,
    words,
)

RTOL_CHAIN = 1e-5  # a norm, a dot product and a rotation in f32 against float64
ATOL_CHAIN = 5e-5
MORE_THAN_ONE = 2  # two products in a row, or a product and its rotation, each of a class with fewer bits
PEAK = 5  # the largest of some hundred errors, by their root mean square
B, T, C, H, K, D, N = 2, 3, 64, 4, 2, 16, 96
CAPACITY, WINDOW = 8, 5
EPS, THETA = 1e-5, 1e6


def assert_chain(actual, expected, limit: float, *, what: str) -> None:
    """Close in every element where all its products are f32, else by the norm."""
    if limit <= F32:
        assert_close(actual, expected, rtol=RTOL_CHAIN, atol=ATOL_CHAIN, what=what)
    else:
        assert_within(actual, expected, MORE_THAN_ONE * limit, what=what)


def layer(ops, kind: str, biased: bool) -> tuple[fused.QkvWeights, dict[str, np.ndarray]]:
    """Weights on the device, and the same as dense f32."""
    dense = {"gain": normal(C, seed=3)}
    held: dict[str, Any] = {"gain": ops.upload(dense["gain"])}
    for name, rows in (("q", H * D), ("k", K * D), ("v", K * D)):
        held[name], dense[name] = weight(ops, normal(rows, C, seed=ord(name)) / 8, kind)
        if biased:
            dense[f"{name}_bias"] = normal(rows, seed=ord(name) + 1)
            held[f"{name}_bias"] = ops.upload(dense[f"{name}_bias"])
    return fused.QkvWeights(**held), dense


def qkv(ops, call, w: fused.QkvWeights, x: np.ndarray, active: np.ndarray) -> list[np.ndarray]:
    """q, and what the ring stands for, after two steps of `call`."""
    ring, q = ops.ring(B, K, 8, D), ops.zeros((B, T, H, D))
    h, k, v = ops.zeros((B, T, C)), ops.zeros((B, T, K, D)), ops.zeros((B, T, K, D))
    for step_active in (words(1, 1), active):
        call(ops, q, ring, ops.upload(x), w, ops.upload(step_active), eps=EPS, theta=THETA, h=h, k=k, v=v)
    return [read(ops, q), *read_ring(ops, ring)]


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("biased", [False, True])
def test_norm_qkv_rope_append(ops, kind, biased):
    w, dense = layer(ops, kind, biased)
    x, active = normal(B, T, C), words(0, 1)
    got = qkv(ops, fused.norm_qkv_rope_append, w, x, active)
    ring_k, ring_v, count = np.zeros((B, K, 8, D)), np.zeros((B, K, 8, D)), words(0, 0)
    h = reference.rms_norm(x, dense["gain"], EPS)
    for step_active in (words(1, 1), active):
        q, k, v = (
            reference.linear(h, dense[name], dense.get(f"{name}_bias")).reshape(B, T, -1, D) for name in "qkv"
        )
        q, k = reference.rope(q, count, THETA), reference.rope(k, count, THETA)
        ring_k, ring_v, count = reference.append(ring_k, ring_v, count, k, v, step_active)
    limit = product_limit(ops, kind, B * T, h)
    assert_chain(got[0], q, limit, what=f"q {kind}")
    for name, actual, expected in zip("kv", got[1:3], (ring_k, ring_v), strict=True):
        typical = np.sqrt(np.mean(expected**2))
        slack = ATOL_CHAIN + (PEAK * limit * typical if limit > F32 else 0)
        assert_kept(ops, actual, expected, what=f"ring.{name} {kind}", slack=slack)
    assert_same(got[3], count, what="count")


def test_norm_qkv_rope_append_leaves_an_idle_lane_bit_for_bit(ops):
    w, _ = layer(ops, "f32", True)
    once = qkv(ops, fused.norm_qkv_rope_append, w, normal(B, T, C), words(0, 0))
    twice = qkv(ops, fused.norm_qkv_rope_append, w, normal(B, T, C), words(0, 1))
    for name, before, after in zip(("k", "v", "count"), once[1:], twice[1:], strict=True):
        assert_same(after[0], before[0], what=f"idle lane of ring.{name}")


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("scaled", [False, True])
def test_gate_up_silu(ops, kind, scaled):
    x, gain = normal(B, T, C), normal(C, seed=1)
    scale = normal(C, seed=2) if scaled else None
    gate, dense_gate = weight(ops, normal(N, C, seed=3) / 8, kind)
    up, dense_up = weight(ops, normal(N, C, seed=4) / 8, kind)
    w = fused.GateUpWeights(ops.upload(gain), gate, up, None if scale is None else ops.upload(scale))
    out, h = ops.zeros((B, T, N)), ops.zeros((B, T, C))
    fused.gate_up_silu(ops, out, ops.upload(x), w, eps=EPS, h=h, up=ops.zeros((B, T, N)))
    normed = reference.rms_norm(x, gain, EPS, scale)
    expected = reference.silu_mul(
        reference.linear(normed, dense_gate), reference.linear(normed, dense_up)
    )
    limit = product_limit(ops, kind, B * T, normed)
    assert_chain(read(ops, out), expected, limit, what=f"gate_up_silu {kind}")


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_residual(ops, kind, biased):
    x, h, bias = normal(B, T, N), normal(B, T, C, seed=1), normal(N, seed=2) if biased else None
    w, dense = weight(ops, normal(N, C, seed=3) / 8, kind)
    held = ops.upload(x)
    device_bias = None if bias is None else ops.upload(bias)
    fused.linear_residual(ops, held, ops.upload(h), w, device_bias, y=ops.zeros((B, T, N)))
    expected = x + reference.linear(h, dense, bias)
    assert_chain(read(ops, held), expected, product_limit(ops, kind, B * T), what=f"residual {kind}")


def begun(ops) -> Ring:
    """A ring of which lane 0 has wrapped and lane 1 has not begun."""
    ring = ops.ring(B, K, CAPACITY, D)
    for seed in range(4):
        k, v = (ops.upload(normal(B, T, K, D, seed=2 * seed + j)) for j in (0, 1))
        ops.append(ring, k, v, ops.upload(words(1, 0)))
    k, v = (ops.upload(normal(B, T, K, D, seed=8 + j)) for j in (0, 1))
    ops.append(ring, k, v, ops.upload(words(1, 1)))
    return ring


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("biased", [False, True])
def test_attend_linear_residual(ops, kind, biased):
    x, q = normal(B, T, C), normal(B, T, H, D, seed=1)
    bias = normal(C, seed=2) if biased else None
    w, dense = weight(ops, normal(C, H * D, seed=3) / 8, kind)
    ring, held = begun(ops), ops.upload(x)
    device_bias = None if bias is None else ops.upload(bias)
    scratch = {"mix": ops.zeros((B, T, H, D)), "y": ops.zeros((B, T, C))}
    fused.attend_linear_residual(ops, held, ops.upload(q), ring, WINDOW, w, device_bias, **scratch)
    mix = reference.attend(q, *read_ring(ops, ring), WINDOW)
    expected = x + reference.linear(mix.reshape(B, T, H * D), dense, bias)
    assert_chain(read(ops, held), expected, product_limit(ops, kind, B * T), what=f"attended {kind}")


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_norm_head_pick(ops, kind):
    """Lane 0 has been told to stop its run of blanks, lane 1 sits out, lane 2 is free to choose."""
    x, gain = normal(3, C), normal(C, seed=1)
    table, dense = weight(ops, normal(N, C, seed=2), kind)
    logits = reference.linear(reference.rms_norm(x, gain, EPS), dense)
    blank = int(logits[0].argmax())
    run, active = words(5, 5, 0), words(1, 0, 1)
    guard = (blank, 3, 1e6, 1e6)
    picked, held = ops.upload(words(7, 7, 7)), ops.upload(run)
    scratch = {"h": ops.zeros((3, C)), "logits": ops.zeros((3, N))}
    fused.norm_head_pick(
        ops, picked, ops.upload(x), ops.upload(gain), table, held, *guard, ops.upload(active), eps=EPS,
        **scratch,
    )
    expected, after = reference.pick(logits, run, *guard, active)
    assert expected[0] != blank, "the guard has a say in this test"
    got = read(ops, picked)
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert_same(read(ops, held), after, what="run")


def test_fused_forms_equal_their_spelling(ops):
    w, _ = layer(ops, "q4_0", True)
    x, active = normal(B, T, C), words(1, 0)
    spelled = qkv(ops, fused.norm_qkv_rope_append.__wrapped__, w, x, active)
    for name, actual, expected in zip(
        ["q", "k", "v", "count"], qkv(ops, fused.norm_qkv_rope_append, w, x, active), spelled, strict=True
    ):
        assert_close(actual, expected, rtol=RTOL_CHAIN, atol=ATOL_CHAIN, what=name)


def test_a_backend_overrides_a_fused_op_by_name():
    class Fused(Portable):
        def linear_residual(self, x, h, w, bias=None, *, y):
            np.add(x, h @ w.T, out=x)
            self.scratch = y

    ops, x = Fused(), normal(1, 2, 3)
    h, w, y = normal(1, 2, 4), normal(3, 4), normal(1, 2, 3, seed=1)
    expected = x + reference.linear(h, w)
    fused.linear_residual(ops, x, h, w, y=y)
    assert ops.scratch is y
    assert_close(x, expected, rtol=RTOL_CHAIN, atol=ATOL_CHAIN, what="own linear_residual")
