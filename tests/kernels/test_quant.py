"""Stored weights, with the `gguf` package as second witness."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kernels import KernelError, ShapeError, quant
from kernels.tensor import KINDS
from tests.compare import assert_close, assert_same

BLOCKS = ("q8_0", "q4_0")
STEPS = {"q8_0": 127, "q4_0": 8}  # a block's largest magnitude, in steps of its scale
SMALLEST_SCALE = 3e-39  # below it 1 / scale overflows, and what the witness then casts is undefined

MAGNITUDES = st.floats(-524_000, 524_000, width=32)  # up to what a q4_0 scale holds; subnormals included
TIES = st.integers(-16, 16).map(lambda n: n / 2)  # halves, whose rounding is where implementations part
F32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


def rows(elements: st.SearchStrategy[float], width: int = 64) -> st.SearchStrategy[np.ndarray]:
    shape = st.integers(1, 4).map(lambda n: (n, width))
    return arrays.arrays(np.float32, shape, elements=elements, fill=st.just(0.0) | elements)


def witness(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Packed bytes and their unpacking, as the `gguf` package has them."""
    gguf = pytest.importorskip("gguf")
    which = gguf.GGMLQuantizationType[kind.upper()]
    packed = gguf.quants.quantize(values, which).view(np.uint8)
    return packed, gguf.quants.dequantize(packed, which).reshape(values.shape)


@pytest.mark.parametrize("kind", BLOCKS)
@settings(max_examples=50, deadline=None)
@given(values=rows(MAGNITUDES) | rows(TIES) | rows(MAGNITUDES.map(lambda x: np.float32(x * 1e-6))))
def test_blocks_are_those_of_the_gguf_package(kind, values):
    blocks = values.reshape(-1, 32)
    peak = np.abs(blocks).max(axis=1)
    blocks[peak < SMALLEST_SCALE * STEPS[kind]] = 0
    packed, unpacked = witness(values, kind)
    assert_same(quant.pack(values, kind), packed, what=f"{kind} packed")
    assert_same(quant.unpack(packed, kind, values.shape), unpacked, what=f"{kind} unpacked")


@pytest.mark.parametrize("kind", BLOCKS)
@settings(max_examples=50, deadline=None)
@given(raw=st.data())
def test_any_bytes_unpack_as_in_the_gguf_package(kind, raw):
    gguf = pytest.importorskip("gguf")
    packed = raw.draw(arrays.arrays(np.uint8, (3, quant.row_bytes(kind, 64))))
    with np.errstate(invalid="ignore"):  # infinite scales times zero steps
        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind.upper()])
        unpacked = quant.unpack(packed, kind, (3, 64))
    assert_close(unpacked, expected, rtol=0, atol=0, what=kind)


@pytest.mark.parametrize("kind", BLOCKS)
def test_normal_weights_are_packed_as_in_the_gguf_package(kind):
    """More than one chunk of blocks, of every size from 1e-9 to 1e4."""
    rng = np.random.default_rng(1)
    size = np.exp(rng.uniform(-20, 9, (5000, 1)))
    values = (rng.standard_normal((5000, 64)) * size).astype(np.float32)
    packed, unpacked = witness(values, kind)
    assert_same(quant.pack(values, kind), packed, what=f"{kind} packed")
    assert_same(quant.unpack(packed, kind, values.shape), unpacked, what=f"{kind} unpacked")


@settings(max_examples=50, deadline=None)
@given(values=rows(F32, width=7))
def test_bf16_is_that_of_the_gguf_package(values):
    packed, unpacked = witness(values, "bf16")
    assert_same(quant.pack(values, "bf16"), packed, what="packed")
    assert_same(quant.unpack(packed, "bf16", values.shape), unpacked, what="unpacked")


def test_bf16_rounds_to_nearest_even():
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32).view(np.float32)
    expected = np.array([0x3F80, 0x3F82, 0x3F81, 0x3F80], np.uint16)
    assert_same(quant.pack(halfway, "bf16").view(np.uint16), expected, what="bits")


def test_every_f16_unpacks_to_its_value():
    every = np.arange(1 << 16, dtype=np.uint16)
    unpacked = quant.unpack(every.view(np.uint8), "f16", (1 << 16,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signalling NaNs
        expected = every.view(np.float16).astype(np.float32)
    assert_same(unpacked[~np.isnan(expected)], expected[~np.isnan(expected)], what="numbers")
    assert np.isnan(unpacked[np.isnan(expected)]).all()


@settings(max_examples=30, deadline=None)
@given(values=rows(F32, width=5))
def test_f32_passes_through_bit_for_bit(values):
    packed = quant.pack(values, "f32")
    assert_same(packed.view(np.float32), values, what="packed")
    assert_same(quant.unpack(packed, "f32", values.shape), values, what="unpacked")


def test_q4_0_by_hand():
    """Scale 0.5; the first 16 weights are low nibbles, the last 16 high ones."""
    low, high = np.arange(16), np.arange(15, -1, -1)
    raw = np.concatenate([np.array([0.5], "<f2").view(np.uint8), low | high << 4]).astype(np.uint8)
    expected = np.concatenate([low - 8, high - 8]).astype(np.float32) / 2
    assert_same(quant.unpack(raw, "q4_0", (1, 32)), expected[None], what="weights")
    assert_same(quant.pack(expected[None], "q4_0")[0], raw, what="bytes")


def test_q8_0_by_hand():
    steps = np.arange(-127, 128, 8).astype(np.int8)  # 32 of them, the first of largest magnitude
    raw = np.concatenate([np.array([0.25], "<f2").view(np.uint8), steps.view(np.uint8)])
    expected = steps.astype(np.float32) / 4
    assert_same(quant.unpack(raw, "q8_0", (1, 32)), expected[None], what="weights")
    assert_same(quant.pack(expected[None], "q8_0")[0], raw, what="bytes")


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("peak", [0.0, -0.0, 1e-45, 2e-39])
def test_blocks_too_small_for_a_scale_read_as_zeros(kind, peak):
    values = np.full((1, 32), peak, np.float32)
    assert not quant.unpack(quant.pack(values, kind), kind, (1, 32)).any()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("f16", 65520.0), ("q8_0", 8.33e6), ("q4_0", -524_200.0)]
    + [(kind, value) for kind in ("f16", *BLOCKS) for value in (np.inf, -np.inf, np.nan, 3e38)],
)
def test_what_f16_cannot_carry_is_refused(kind, value):
    values = np.ones((2, 32), np.float32)
    values[1, 7] = value
    with pytest.raises(KernelError, match=kind):
        quant.pack(values, kind)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_wide_exponents_carry_infinities_and_nan(kind):
    values = np.array([[np.inf, -np.inf, np.nan, 1e38]], np.float32)
    unpacked = quant.unpack(quant.pack(values, kind), kind, values.shape)
    assert_close(unpacked, values, rtol=2**-8, atol=0, what=kind)


def test_sizes():
    assert [quant.row_bytes(kind, 64) for kind in KINDS] == [256, 128, 128, 68, 36]
    assert [quant.nbytes(kind, (3, 5, 64)) for kind in KINDS] == [3840, 1920, 1920, 1020, 540]
    assert quant.nbytes("f32", ()) == 4
    assert quant.nbytes("q4_0", (0, 64)) == 0


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("columns", [1, 31, 33, 48, -32])
def test_rows_of_broken_blocks_are_refused(kind, columns):
    for call in (quant.row_bytes, lambda kind, columns: quant.nbytes(kind, (2, columns))):
        with pytest.raises(ShapeError, match="whole blocks"):
            call(kind, columns)
    if columns > 0:
        with pytest.raises(ShapeError, match="whole blocks"):
            quant.pack(np.zeros((2, columns), np.float32), kind)


def test_unknown_kinds_are_refused():
    with pytest.raises(ShapeError, match="'q5_1'"):
        quant.row_bytes("q5_1", 32)


@pytest.mark.parametrize("kind", KINDS)
def test_unpack_refuses_the_wrong_number_of_bytes(kind):
    raw = quant.pack(np.ones((2, 32), np.float32), kind).reshape(-1)
    for wrong in (raw[:-1], raw[:0], np.append(raw, raw[:1])):
        with pytest.raises(ShapeError, match="bytes"):
            quant.unpack(wrong, kind, (2, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_unpack_writes_into_out(kind):
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    packed, out = quant.pack(values, kind), np.empty((2, 32), np.float32)
    assert quant.unpack(packed, kind, (2, 32), out=out) is out
    assert_same(out, quant.unpack(packed, kind, (2, 32)), what=kind)
