"""What a benchmark asks of a device: reading reads everything, copying copies it, random bits are random."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import ShapeError
from kernels.cuda import probe
from kernels.cuda.device import Device
from tests.compare import assert_same
from tests.kernels.devices import CARD, emulated, opened

SIZES = (1, 3, 4096, 70_001)  # vectors of 16 bytes: less than a warp, and more than four for every thread


@pytest.fixture(scope="module", params=["emulated", CARD])
def device(request: pytest.FixtureRequest) -> Device:
    return opened("card") if request.param == "card" else emulated(processors=2)


def words(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(1 << 32, size=count, dtype=np.uint32)


@pytest.mark.parametrize("vectors", SIZES)
def test_read_sees_every_word_once(device: Device, vectors: int):
    x = words(4 * vectors)
    found = device.zeros((probe.read_blocks(device),), np.uint32)
    probe.read(found, device.upload(x), device=device)
    assert np.bitwise_xor.reduce(device.fetch(found).wait()) == np.bitwise_xor.reduce(x)


@pytest.mark.parametrize("vectors", SIZES)
def test_copy_copies_every_word(device: Device, vectors: int):
    x = words(4 * vectors)
    out = device.zeros(x.shape, np.uint32)
    probe.copy(out, device.upload(x), device=device)
    assert_same(device.fetch(out).wait(), x, what="copy")


def test_read_and_copy_refuse_what_is_no_whole_number_of_vectors(device: Device):
    odd, even = device.zeros((5,), np.uint32), device.zeros((8,), np.uint32)
    with pytest.raises(ShapeError, match="read: expected a multiple of 16 bytes, got 20"):
        probe.read(device.zeros((2,), np.uint32), odd, device=device)
    with pytest.raises(ShapeError, match="copy: expected a multiple"):
        probe.copy(odd, odd, device=device)
    with pytest.raises(ShapeError, match="copy: 32 bytes do not fit 64"):
        probe.copy(device.zeros((16,), np.uint32), even, device=device)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_random_floats_are_half_to_one_in_size_and_of_both_signs(device: Device, dtype: type):
    out = device.zeros((3, 70_000), dtype)
    probe.random(out, 7, device=device)
    bits = device.fetch(out).wait()
    values = (bits.astype(np.uint32) << 16).view(np.float32) if dtype is np.uint16 else bits
    size = np.abs(values.astype(np.float64))
    assert size.min() >= 0.5 and size.max() < 1
    assert 0.49 < np.mean(values > 0) < 0.51
    assert 0.74 < size.mean() < 0.76


def test_random_bits_depend_on_place_and_seed_alone(device: Device):
    once, again, other = (device.zeros((50_000,), np.uint32) for _ in range(3))
    for out, seed in ((once, 1), (again, 1), (other, 2)):
        probe.random(out, seed, device=device)
    bits = device.fetch(once).wait()
    assert_same(device.fetch(again).wait(), bits, what="the same seed")
    assert np.mean(device.fetch(other).wait() == bits) < 0.001
    assert len(np.unique(bits)) > 49_900


def test_random_leaves_the_bytes_behind_the_last_word(device: Device):
    out = device.zeros((73,), np.float16)
    probe.random(out, 3, device=device)
    values = device.fetch(out).wait()
    assert np.all(values[:72] != 0) and values[72] == 0
    probe.random(device.zeros((1,), np.float16), 3, device=device)


@pytest.mark.parametrize("arguments", probe.EMPTY)
def test_a_kernel_that_does_nothing_can_be_recorded(device: Device, arguments: int):
    launch = probe.nothing(arguments, device=device)
    launch()
    replay = device.record(launch)
    assert device.timed(replay) > 0
