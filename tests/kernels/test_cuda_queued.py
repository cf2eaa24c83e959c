"""Every kernel through the card's own queue: what it gives is what it gives at once, bit for bit.

Between them stands all that a GPU does later than it was asked, and all that it knows by address alone.
"""

from __future__ import annotations

import pytest

from kernels import BackendMissing, reference
from kernels.cuda.backend import Cuda
from tests.compare import assert_same
from tests.kernels.arrays import F32, assert_within, normal, read
from tests.kernels.devices import emulated
from tests.kernels.emulator.tour import tour
from tests.kernels.pretend_cupy import emulated_card


@pytest.fixture(scope="module")
def queued() -> Cuda:
    try:
        return Cuda(emulated_card(processors=1))
    except BackendMissing as reason:
        pytest.skip(f"emulated: {reason}")


@pytest.mark.slow
def test_every_kernel_gives_the_same_bits_through_the_card(queued: Cuda):
    at_once = dict(tour(Cuda(emulated(processors=1))))
    seen = dict(tour(queued))
    assert seen.keys() == at_once.keys()
    for name, result in seen.items():
        assert_same(result, at_once[name], what=name)


def test_a_recorded_product_reads_what_was_copied_from_between_other_items(queued: Cuda):
    x, w = queued.upload(normal(3, 5, 64)), queued.upload(normal(7, 64, seed=1))
    held, out = queued.zeros((3, 2, 64)), queued.zeros((3, 2, 7))

    def step() -> None:
        queued.copy(x[:, 1:3], out=held)
        queued.linear(out, held, w)

    step()
    replay = queued.capture(step)
    for seed in (0, 2):
        queued.upload(normal(3, 5, 64, seed=seed), out=x)
        replay()
        expected = reference.linear(normal(3, 5, 64, seed=seed)[:, 1:3], normal(7, 64, seed=1))
        assert_within(read(queued, out), expected, F32, what=f"seed {seed}")
