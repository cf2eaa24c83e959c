"""Plans of the cpu backend: a replay gives the bits of single ops, and nothing it points at goes away."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from kernels import KernelError, fused
from kernels.tensor import Ring
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import ATOL_DOT, RTOL_POINT, normal, weight, words

pytest.importorskip("numba")

from kernels.cpu.backend import Cpu

B, T, C, H, K, D, N = 2, 3, 64, 4, 2, 16, 96


@pytest.fixture(scope="module")
def ops() -> Cpu:
    return Cpu()


class Layer:
    """A layer and a head with state, buffers and inputs of its own, equal for equal seeds."""

    def __init__(self, ops: Cpu, kind: str):
        def held(rows: int, columns: int, seed: int):
            return weight(ops, normal(rows, columns, seed=seed) / 8, kind)[0]

        self.ops, self.ring = ops, ops.ring(B, K, 8, D)
        self.x, self.active, self.run = normal(B, T, C), words(1, 1), words(0, 0)
        q, k, v = held(H * D, C, 1), held(K * D, C, 2), held(K * D, C, 3)
        self.qkv = fused.QkvWeights(normal(C), q, k, v, normal(H * D))
        self.wo, self.down, self.table = held(C, H * D, 4), held(C, N, 5), held(N, C, 8)
        self.mlp = fused.GateUpWeights(normal(C, seed=1), held(N, C, 6), held(N, C, 7), normal(C, seed=2))
        self.q, self.mix = ops.zeros((B, T, H, D)), ops.zeros((B, T, H, D))
        self.k, self.v = ops.zeros((B, T, K, D)), ops.zeros((B, T, K, D))
        self.h, self.y = ops.zeros((B, T, C)), ops.zeros((B, T, C))
        self.gate, self.up = ops.zeros((B, T, N)), ops.zeros((B, T, N))
        self.logits, self.picked, self.tail = ops.zeros((B, N)), ops.zeros((B,), "i32"), ops.zeros((B, 2, C))
        self.filter, self.last = normal(C, C, 3) / 16, ops.zeros((B, C))

    def step(self) -> None:
        ops, scratch = self.ops, {"h": self.h}
        ops.conv1d(self.y, self.tail, self.x, self.filter, None, 1, self.active)
        ops.gelu(self.x, self.y)
        fused.norm_qkv_rope_append(
            ops, self.q, self.ring, self.x, self.qkv, self.active, eps=1e-5, theta=1e4, k=self.k, v=self.v,
            **scratch,
        )
        fused.attend_linear_residual(ops, self.x, self.q, self.ring, 5, self.wo, mix=self.mix, y=self.y)
        fused.gate_up_silu(ops, self.gate, self.x, self.mlp, eps=1e-5, up=self.up, **scratch)
        fused.linear_residual(ops, self.x, self.gate, self.down, y=self.y)
        ops.copy(self.x[:, 0], out=self.last)
        fused.norm_head_pick(
            ops, self.picked, self.last, self.qkv.gain, self.table, self.run, 0, 2, 0.5, 4.0, self.active,
            eps=1e-5, h=self.h.reshape(-1, C)[:B], logits=self.logits,
        )
        ops.embed(self.last, self.picked, self.table)
        ops.layer_norm(self.h, self.x, self.qkv.gain, self.mlp.gain, 1e-5)
        ops.elu(self.h, self.h)
        ops.add(self.x, self.x, self.h)

    def state(self) -> list[np.ndarray]:
        ring = self.ring
        return [self.x, ring.k, ring.v, ring.count, self.picked, self.run, self.tail, self.last, self.logits]


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "bf16"])
def test_a_replay_gives_the_bits_of_single_ops(ops, kind):
    alone, replayed = Layer(ops, kind), Layer(ops, kind)
    replay = ops.capture(replayed.step)
    for _ in range(4):
        alone.step()
        replay()
    assert np.any(alone.x)
    assert alone.ring.count.tolist() == [4 * T] * B
    for i, (expected, actual) in enumerate(zip(alone.state(), replayed.state(), strict=True)):
        assert_same(actual, expected, what=f"state {i}")


@pytest.mark.parametrize("kind", ["q4_0", "bf16"])
def test_fused_forms_give_the_bits_of_their_spelling(ops, kind, monkeypatch):
    fused_forms, spelled = Layer(ops, kind), Layer(ops, kind)
    fused_forms.step()
    for name in ("norm_qkv_rope_append", "attend_linear_residual", "gate_up_silu", "linear_residual"):
        monkeypatch.setattr(fused, name, getattr(fused, name).__wrapped__)
    spelled.step()
    for i, (expected, actual) in enumerate(zip(spelled.state(), fused_forms.state(), strict=True)):
        assert_same(actual, expected, what=f"state {i}")


def test_what_a_replay_points_at_lives_as_long_as_the_replay(ops):
    def recorded():
        x, out, bias = normal(1, 64), ops.zeros((1, 4096)), normal(4096)
        w, dense = weight(ops, normal(4096, 64, seed=1), "q4_0")
        expected = x.astype(np.float64) @ dense.T.astype(np.float64) + bias
        return ops.capture(lambda: ops.linear(out, x, w, bias)), out.ctypes.data, expected

    replay, _, expected = recorded()
    gc.collect()
    noise = [np.full((1, 4096), np.nan, np.float32) for _ in range(50)]  # takes what was freed
    replay()
    out = next(array for array in replay.args[0].held if getattr(array, "shape", ()) == (1, 4096))
    assert np.linalg.norm(out - expected) < 2e-2 * np.linalg.norm(expected)
    assert all(np.isnan(array).all() for array in noise)


def test_work_memory_that_grows_leaves_older_replays_alone(ops):
    small, large = weight(ops, normal(40, 32), "q4_0")[0], weight(ops, normal(40, 65536, seed=1), "q4_0")[0]
    x, out, wide = normal(1, 32), ops.zeros((1, 40)), ops.zeros((64, 40))
    replay = ops.capture(lambda: ops.linear(out, x, small))
    replay()
    before = out.copy()
    ops.linear(wide, normal(64, 65536), large)
    out[:] = 0
    replay()
    assert_same(out, before, what="the small product")


def test_a_replay_reads_positions_when_it_runs(ops):
    x, at, start = ops.zeros((1, 2, 2, 8)), words(3), normal(1, 2, 2, 8)
    replay = ops.capture(lambda: ops.rope(x, at, 1e4))
    for position in (3, 3, 4, 1_000_000, 3):
        expected = start.copy()
        ops.rope(expected, words(position), 1e4)
        ops.upload(start, out=x)
        ops.upload(words(position), out=at)
        replay()
        assert_same(x, expected, what=f"position {position}")


def test_lanes_of_a_replay_may_stand_at_different_positions(ops):
    ring, q, out = ops.ring(2, 1, 8, 4), normal(2, 1, 1, 4), ops.zeros((2, 1, 1, 4))
    k, active = normal(2, 1, 1, 4, seed=1), words(1, 1)

    def step():
        ops.rope(q, ring.count, 1e4)
        ops.append(ring, k, k, active)
        ops.attend(out, q, ring, 8)

    replay = ops.capture(step)
    for lanes in ((1, 1), (1, 0), (0, 1), (1, 0)):
        ops.upload(words(*lanes), out=active)
        replay()
    assert_same(ring.count, words(3, 2), what="counts")
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    "verb",
    [
        lambda ops: ops.zeros((1,)),
        lambda ops: ops.upload(np.zeros(1, np.float32)),
        lambda ops: ops.upload(np.zeros(1, np.float32), out=np.zeros(1, np.float32)),
        lambda ops: ops.fetch(np.zeros(1, np.float32)),
        lambda ops: ops.copy(np.zeros(1, np.float32)),
        lambda ops: ops.clear(np.zeros((1, 1), np.float32), 0),
        lambda ops: ops.ring(1, 1, 1, 1),
        lambda ops: ops.adopt(np.zeros(4, np.uint8), "f32", (1,)),
        lambda ops: ops.capture(lambda: None),
    ],
)
def test_a_capture_refuses_what_a_replay_could_not_repeat(ops, verb):
    with pytest.raises(KernelError, match="capture"):
        ops.capture(lambda: verb(ops))
    verb(ops)  # and it is over


def test_ops_of_another_thread_are_not_recorded(ops):
    total, one, other = ops.zeros((4,)), np.ones(4, np.float32), ops.zeros((4,))

    def step():
        ops.add(total, total, one)
        thread = threading.Thread(target=ops.add, args=(other, other, one))
        thread.start()
        thread.join()

    replay = ops.capture(step)
    assert_same(other, one, what="ran at once, in its thread")
    replay()
    assert_same(total, one, what="ran when replayed")
    assert_same(other, one, what="was not recorded")


def test_operands_that_kernels_could_not_read_are_refused(ops):
    out, x = ops.zeros((4, 4)), normal(4, 4)
    for wrong in (x.T, x[:, ::2][:, :2].repeat(2, 1).astype(np.float64), x.astype(np.int32), x.tolist()):
        with pytest.raises((KernelError, AttributeError)):
            ops.gelu(out, wrong)
    half = ops.zeros((4, 2))
    with pytest.raises(KernelError, match="first axis"):
        ops.capture(lambda: ops.copy(x.T[:, ::2], out=half))


def test_an_empty_step_does_nothing(ops):
    w, _ = weight(ops, normal(8, 32), "q4_0")
    ops.linear(ops.zeros((0, 8)), ops.zeros((0, 32)), w)
    ops.gelu(ops.zeros((0, 8)), ops.zeros((0, 8)))
    ops.capture(lambda: None)()


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_attention_is_the_same_over_tiles_and_at_once(kv):
    """More positions than a tile holds, and the largest score in the last of them."""
    ops = Cpu(kv=kv)
    ring, q = ops.ring(1, 1, 1000, 32), normal(1, 1, 3, 32)
    k, v = normal(1, 900, 1, 32, seed=1), normal(1, 900, 1, 32, seed=2)
    k[0, 880] = 4 * q[0, 0, 0]
    ops.append(ring, k, v, words(1))
    out = ops.zeros((1, 1, 3, 32))
    ops.attend(out, q, ring, 800)
    held_k, held_v = (part[0, 0, 100:900].astype(np.float64) for part in (ring.k, ring.v))
    scores = q[0, 0].astype(np.float64) @ held_k.T / np.sqrt(32)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True) @ held_v
    assert_close(out[0, 0], expected, rtol=RTOL_POINT, atol=ATOL_DOT, what=kv)


def test_a_ring_may_hold_anything_where_nothing_was_written(ops):
    ring = ops.ring(2, 1, 16, 8)
    ring = Ring(np.full_like(ring.k, np.nan), np.full_like(ring.v, np.nan), ring.count)
    k, out = normal(2, 3, 1, 8), np.full((2, 3, 2, 8), np.nan, np.float32)
    ops.append(ring, k, k, words(1, 0))
    ops.attend(out, normal(2, 3, 2, 8, seed=1), ring, 8)
    assert np.isfinite(out).all()
    assert not out[1].any(), "a lane that has not begun gives zeros"
