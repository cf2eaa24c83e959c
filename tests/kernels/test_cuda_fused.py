"""The CUDA backend's composite ops at every size of launch, held to their spelling in basic ops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import fused
from kernels.cuda.backend import Cuda
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import normal, read, read_ring, weight, words
from tests.kernels.devices import CARD, opened

ROWS = (1, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65)  # both sides of every kernel's capacity, and one too many
RTOL_CHAIN = 1e-5  # a norm, a dot product and a rotation, each f32 in both; the sums' order differs
ATOL_CHAIN = 5e-5
EPS, THETA = 1e-5, 1e4


@pytest.fixture(scope="module", params=[0, CARD])
def device(request: pytest.FixtureRequest) -> Cuda:
    """For ops that no ring takes part in."""
    return Cuda(opened(request.param))


@pytest.fixture(scope="module", params=["f16", "q8"])
def cuda(request: pytest.FixtureRequest, device: Cuda) -> Cuda:
    return Cuda(device.device, kv=request.param)


def q4_0(ops: Cuda, rows: int, columns: int, seed: int):
    return weight(ops, normal(rows, columns, seed=seed) / 8, "q4_0")[0]


def near(actual: np.ndarray, expected: np.ndarray, *, what: str) -> None:
    assert_close(actual, expected, rtol=RTOL_CHAIN, atol=ATOL_CHAIN, what=what)


@pytest.mark.parametrize("lanes, items", [(1, 1), (3, 1), (1, 4), (2, 4), (4, 4), (7, 3), (16, 4), (13, 5)])
def test_qkv_at_every_size(cuda, lanes, items):
    heads, kept, width, columns = 4, 2, 10, 96  # heads * width is no multiple of a tile
    w = fused.QkvWeights(
        cuda.upload(normal(columns, seed=1)),
        *(q4_0(cuda, rows * width, columns, seed) for seed, rows in ((2, heads), (3, kept), (4, kept))),
        q_bias=cuda.upload(normal(heads * width, seed=5)), v_bias=cuda.upload(normal(kept * width, seed=6)),
    )  # fmt: skip
    said = []
    for call in (fused.norm_qkv_rope_append, fused.norm_qkv_rope_append.__wrapped__):
        ring, q = cuda.ring(lanes, kept, 11, width), cuda.zeros((lanes, items, heads, width))
        h, k, v = (cuda.zeros((lanes, items, *end)) for end in ((columns,), (kept, width), (kept, width)))
        for step in range(4):
            active = words(*[(lane + step) % 3 > 0 for lane in range(lanes)])
            x = cuda.upload(normal(lanes, items, columns, seed=10 + step))
            call(cuda, q, ring, x, w, cuda.upload(active), eps=EPS, theta=THETA, h=h, k=k, v=v)
        said.append((read(cuda, q), *read_ring(cuda, ring)))
    for name, actual, expected in zip(("q", "k", "v", "count"), *said, strict=True):
        if name in "kv":  # both ways round: to a half, or to a step of the largest of a row
            step = 2.0**-10 if cuda.kv == "f16" else 1 / 127
            size = np.abs(expected).max(axis=-1, keepdims=True)
            assert (np.abs(actual - expected) <= step * size + ATOL_CHAIN).all(), name
        else:
            near(actual, expected, what=name)


def test_qkv_leaves_idle_lanes_and_foreign_slots_bit_for_bit(cuda):
    columns, width = 64, 16
    w = fused.QkvWeights(
        cuda.upload(normal(columns)), *(q4_0(cuda, width, columns, seed) for seed in (1, 2, 3))
    )
    ring, q = cuda.ring(2, 1, 4, width), cuda.zeros((2, 1, 1, width))
    h, k, v = cuda.zeros((2, 1, columns)), cuda.zeros((2, 1, 1, width)), cuda.zeros((2, 1, 1, width))

    def step(*active: int) -> None:
        x, on = cuda.upload(normal(2, 1, columns, seed=sum(active))), cuda.upload(words(*active))
        fused.norm_qkv_rope_append(cuda, q, ring, x, w, on, eps=EPS, theta=THETA, h=h, k=k, v=v)

    step(1, 1)
    before = read_ring(cuda, ring)
    step(0, 1)
    after = read_ring(cuda, ring)
    for name, old, new in zip(("k", "v", "count"), before, after, strict=True):
        assert_same(new[0], old[0], what=f"{name} of the idle lane")
    assert_same(after[0][1, :, 0], before[0][1, :, 0], what="the first key of the other lane")
    assert_same(after[2], words(1, 2), what="count")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("biased", [False, True])
def test_residual_at_every_size(device, rows, biased):
    x, h = normal(rows, 1, 40), device.upload(normal(rows, 1, 160, seed=1))
    w, y = q4_0(device, 40, 160, 2), device.zeros((rows, 1, 40))
    bias = device.upload(normal(40, seed=3)) if biased else None
    ours, spelled = device.upload(x), device.upload(x)
    fused.linear_residual(device, ours, h, w, bias, y=y)
    fused.linear_residual.__wrapped__(device, spelled, h, w, bias, y=y)
    near(read(device, ours), read(device, spelled), what="residual")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scaled", [False, True])
def test_gate_up_at_every_size(device, rows, scaled):
    x, scale = device.upload(normal(rows, 1, 96)), device.upload(normal(96, seed=4)) if scaled else None
    gate, up = (q4_0(device, 35, 96, seed) for seed in (1, 2))
    w = fused.GateUpWeights(device.upload(normal(96, seed=3)), gate, up, scale)
    h, room = device.zeros((rows, 1, 96)), device.zeros((rows, 1, 35))
    ours, spelled = device.zeros((rows, 1, 35)), device.zeros((rows, 1, 35))
    fused.gate_up_silu(device, ours, x, w, eps=EPS, h=h, up=room)
    fused.gate_up_silu.__wrapped__(device, spelled, x, w, eps=EPS, h=h, up=room)
    near(read(device, ours), read(device, spelled), what="gate_up")


@pytest.mark.parametrize("rows", ROWS)
def test_head_at_every_size(device, rows):
    x, table = device.upload(normal(rows, 64)), q4_0(device, 323, 64, 1)
    gain, h, logits = device.upload(normal(64, seed=2)), device.zeros((rows, 64)), device.zeros((rows, 323))
    blank, patience = 7, 3
    active = words(*[lane % 4 != 2 for lane in range(rows)])
    start = words(*[lane % 9 for lane in range(rows)])
    said = []
    for call in (fused.norm_head_pick, fused.norm_head_pick.__wrapped__):
        picked, run = device.zeros((rows,), "i32"), device.upload(start)
        for _ in range(2):  # the second finds what the first left of its counters
            call(
                device, picked, x, gain, table, run, blank, patience, 0.5, 2.0, device.upload(active),
                eps=EPS, h=h, logits=logits,
            )  # fmt: skip
        said.append((read(device, picked), read(device, run)))
    for name, actual, expected in zip(("picked", "run"), *said, strict=True):
        assert_same(actual[active > 0], expected[active > 0], what=name)
    assert_same(said[0][1][active == 0], start[active == 0], what="run of idle lanes")


def test_head_takes_the_first_of_equal_rows(device):
    dense = np.tile(normal(1, 64), (200, 1))  # every row the same
    table, x = weight(device, dense, "q4_0")[0], device.upload(normal(1, 64))
    picked, run, one = device.zeros((1,), "i32"), device.zeros((1,), "i32"), device.upload(words(1))
    ones, h = device.upload(np.ones(64, np.float32)), device.zeros((1, 64))
    fused.norm_head_pick(
        device, picked, x, ones, table, run, -1, 9, 0.0, 0.0, one, eps=EPS, h=h, logits=device.zeros((1, 200))
    )
    assert_same(read(device, picked), words(0), what="picked")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 70), st.integers(0, 99))
def test_residual_of_any_shape(device, rows, blocks, outputs, seed):
    h, x = device.upload(normal(1, rows, 32 * blocks, seed=seed)), normal(1, rows, outputs, seed=seed + 1)
    w, y = q4_0(device, outputs, 32 * blocks, seed + 2), device.zeros((1, rows, outputs))
    ours, spelled = device.upload(x), device.upload(x)
    fused.linear_residual(device, ours, h, w, y=y)
    fused.linear_residual.__wrapped__(device, spelled, h, w, y=y)
    near(read(device, ours), read(device, spelled), what="residual")
