"""What tests of CUDA kernels run on: the emulator under some schedule, or the card."""

from __future__ import annotations

from typing import Any

import pytest

from kernels import BackendMissing
from kernels.cuda.card import open_card
from tests.kernels.emulator.device import EmulatedDevice

CARD = pytest.param("card", marks=pytest.mark.gpu)


def opened(which: int | str) -> Any:
    """The emulator with the seed `which`, or the card if that is "card"; skips where there is none."""
    if which != "card":
        return emulated(seed=which)
    try:
        return open_card()
    except BackendMissing as reason:
        pytest.skip(f"cuda: {reason}")


def emulated(**options: Any) -> EmulatedDevice:
    """As `EmulatedDevice`; skips where nothing can be built."""
    try:
        return EmulatedDevice(**options)
    except BackendMissing as reason:
        pytest.skip(f"emulated: {reason}")
