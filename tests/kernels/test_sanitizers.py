"""Every kernel of the CUDA backend under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from kernels import BackendMissing
from kernels.cuda import source
from tests.kernels.emulator import build, faults
from tests.kernels.emulator.device import LAUNCHED, MODE

pytestmark = pytest.mark.slow
TAIL = 4000  # characters of a report


@dataclass(frozen=True)
class Walk:
    mode: str
    launched: frozenset[str]
    code: int
    said: str


@pytest.fixture(scope="module", params=faults.FINDINGS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The tour in a process of its own; a finding ends it."""
    mode, launched = request.param, tmp_path_factory.mktemp("walk") / "launched"
    try:
        settings = {MODE: mode, LAUNCHED: str(launched)}
        ran = build.run_apart(mode, "tests.kernels.emulator.tour", **settings)
    except BackendMissing as reason:
        pytest.skip(str(reason))
    names = launched.read_text(encoding="utf-8").splitlines() if launched.exists() else []
    return Walk(mode, frozenset(names), ran.returncode, f"{ran.stdout[-TAIL:]}\n{ran.stderr[-TAIL:]}")


def test_nothing_is_found(walk):
    found = re.search(faults.FINDINGS[walk.mode], walk.said)
    assert walk.code == 0 and not found, walk.said


def test_no_kernel_was_left_out(walk):
    every = {f"{walk.mode} {file} {kernel}" for file in source.FILES for kernel in source.kernels(file)}
    assert every - walk.launched == set()
