"""Products of the cpu backend: every instruction set that runs here, bytes at their limits, rows alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import quant
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import ATOL_DOT, RTOL_POINT, normal, weight, words

pytest.importorskip("numba")

from kernels.cpu import machine
from kernels.cpu.backend import Cpu

SETS = machine.usable()
BLOCKS = ("q4_0", "q8_0")
# A byte is off by a step / sqrt(12), rms; a step is a 127th of the largest of 32 values, of normal ones 2.1
# standard deviations: 2.1 / 127 / 3.46 = 4.8e-3 of the norm. Measured 5.3e-3, up to 6.0e-3.
BYTES = 8e-3


def product(ops: Cpu, x: np.ndarray, w) -> np.ndarray:
    out = ops.zeros((*x.shape[:-1], w.shape[0]))
    ops.linear(out, x, w)
    return out


def exact(x: np.ndarray, dense: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ dense.astype(np.float64).T


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("items", [1, 2, 3, 4, 5, 8, 13, 16])
def test_bytes_cost_half_a_percent_of_a_product(isa, kind, items):
    ops, x = Cpu(isa=isa), normal(items, 1024)
    w, dense = weight(ops, normal(100, 1024, seed=1), kind)
    expected = exact(x, dense)
    error = np.linalg.norm(product(ops, x, w) - expected) / np.linalg.norm(expected)
    assert error < BYTES


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("items", [1, 3, 9])
def test_products_with_f32_activations_are_f32(isa, kind, items):
    ops, x = Cpu(isa=isa, activations="f32"), normal(items, 1024)
    w, dense = weight(ops, normal(100, 1024, seed=1), kind)
    assert_close(product(ops, x, w), exact(x, dense), rtol=RTOL_POINT, atol=ATOL_DOT, what=kind)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_of_the_largest_bytes_do_not_saturate(isa, sign):
    """Weights at both ends of their range against 127s; every factor is whole, so every sum is exact."""
    ops, x = Cpu(isa=isa), np.full((3, 64), 127 * sign, np.float32)
    x[1, ::2] *= -1
    q8 = np.zeros((20, 2), quant.Q8_BLOCK)
    q8["scale"], q8["q"] = 1, np.where(np.arange(32) % 3, 127, -128)
    q8["q"][1::2] = -128
    q4 = np.zeros((20, 2), quant.Q4_BLOCK)
    q4["scale"], q4["front"], q4["back"] = 1, 0xFFFFFFFFFFFFFFFF, 0x0F0F0F0F0F0F0F0F
    q4["front"][1::2] = q4["back"][1::2] = 0
    for kind, blocks in (("q8_0", q8), ("q4_0", q4)):
        raw = blocks.view(np.uint8).reshape(-1)
        dense = quant.unpack(raw, kind, (20, 64))
        got = product(ops, x, ops.adopt(raw, kind, (20, 64)))
        assert_same(got, exact(x, dense).astype(np.float32), what=kind)


@pytest.mark.parametrize("kind", BLOCKS)
def test_instruction_sets_agree_to_the_last_bits(kind):
    """Bytes are summed exactly everywhere; only how blocks are added may round differently."""
    x, got = normal(5, 512), []
    for isa in SETS:
        ops = Cpu(isa=isa)
        got.append(product(ops, x, weight(ops, normal(40, 512, seed=1), kind)[0]))
    for isa, other in zip(SETS[1:], got[1:], strict=True):
        assert_close(other, got[0], rtol=RTOL_POINT, atol=ATOL_DOT, what=f"{kind} {isa} against {SETS[0]}")


@settings(max_examples=20, deadline=None)
@given(
    isa=st.sampled_from(SETS), kind=st.sampled_from(("q4_0", "q8_0", "bf16", "f32")),
    rows=st.integers(1, 40), items=st.integers(1, 20), blocks=st.integers(1, 4),
)
def test_a_row_of_x_gets_the_same_bits_alone_and_among_others(isa, kind, rows, items, blocks):
    ops, x = Cpu(isa=isa), normal(items, 32 * blocks)
    w, _ = weight(ops, normal(rows, 32 * blocks, seed=1), kind)
    together = product(ops, x, w)
    for i in range(items):
        assert_same(together[i : i + 1], product(ops, x[i : i + 1], w), what=f"{kind} row {i}")


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("rows", [1, 8, 15, 16, 17, 33])
def test_interleaved_rows_read_back_as_they_were_stored(isa, kind, rows):
    ops = Cpu(isa=isa)
    table, dense = weight(ops, normal(rows, 96), kind)
    out = ops.zeros((rows, 96))
    ops.embed(out, words(*range(rows)), table)
    assert_same(out, dense, what=f"{kind} of {rows} rows")


@pytest.mark.parametrize("isa", SETS)
def test_silence_and_nearly_silence_give_silence(isa):
    ops = Cpu(isa=isa)
    w, _ = weight(ops, normal(9, 64), "q4_0")
    for value in (0.0, 1e-38, 1e-45):
        out = product(ops, np.full((2, 64), value, np.float32), w)
        assert np.abs(out).max() <= 1e-35


@pytest.mark.parametrize("isa", SETS)
def test_a_loud_block_leaves_the_others_their_precision(isa):
    """Each 32 columns have a scale of their own."""
    ops, x = Cpu(isa=isa), normal(1, 64)
    x[:, 32:] *= 1e6
    w, dense = weight(ops, np.concatenate([normal(9, 32), np.zeros((9, 32), np.float32)], axis=1), "q4_0")
    expected = exact(x, dense)
    assert np.linalg.norm(product(ops, x, w) - expected) < 2 * BYTES * np.linalg.norm(expected)


def test_a_weight_does_not_keep_its_file_alive(tmp_path):
    """`adopt` reads a mapped file and lets go of it; what it read has been given back to the system."""
    path = tmp_path / "weights"
    packed = quant.pack(normal(4096, 1024), "q4_0").reshape(-1)
    path.write_bytes(packed.tobytes())
    ops, mapped = Cpu(), np.asarray(np.memmap(path, np.uint8, mode="r"))
    w = ops.adopt(mapped, "q4_0", (4096, 1024))
    assert not np.shares_memory(w.tiles[0], mapped)
    assert_same(mapped, packed, what="the file, read again")
    f32 = ops.adopt(mapped[: 4 * 1024], "f32", (1, 1024))
    assert not np.shares_memory(f32, mapped)


def test_weights_side_by_side_in_one_allocation_stay_apart():
    ops, made = Cpu(), []
    for seed in range(12):
        made.append(weight(ops, normal(17, 96, seed=seed), BLOCKS[seed % 2]))
    for i, (w, dense) in enumerate(made):
        memory = w.tiles[0]
        assert memory.ctypes.data % 64 == 0, "a cache line"
        assert not any(np.shares_memory(memory, other.tiles[0]) for other, _ in made[:i])
        out = ops.zeros((17, 96))
        ops.embed(out, words(*range(17)), w)
        assert_same(out, dense, what=f"weight {i}")
