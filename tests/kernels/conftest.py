"""The backends under test, in one place: a new one joins every test of the suite as one more row."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kernels import Backend, BackendMissing, open_backend
from tests.kernels.emulator.device import EmulatedDevice

EMULATOR = "HEADRACE_EMULATOR"  # "asan", or "poison:3": mode and seed of every emulated row
LAUNCHED = "HEADRACE_LAUNCHED"  # a file that takes the names of all kernels that ran in the emulator


@dataclass(frozen=True, slots=True)
class Row:
    """One backend with its options.

    emulated : compute capability of the device that its kernels run on without one; None for a real one
    marks : of pytest
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    emulated: tuple[int, int] | None = None
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in self.options.items()]
        return "-".join([self.backend, *(["emulated"] if self.emulated else []), *options])

    def open(self) -> Backend:
        """Raises BackendMissing where this row cannot run."""
        if self.emulated is None:
            return open_backend(self.backend, **self.options)
        mode, _, seed = os.environ.get(EMULATOR, "poison").partition(":")
        device = EmulatedDevice(mode, seed=int(seed or 0), capability=self.emulated)
        return open_backend(self.backend, device=device, **self.options)


ROWS = {"kv": "q8", "layout": "rows"}  # what is not the default, in one row: nothing depends on both
SUITE = (
    Row("portable"),
    Row("portable", {"widen_bytes": 0}),  # every quantised matrix stays stored
    Row("cuda", emulated=(9, 0)),
    Row("cuda", ROWS, emulated=(7, 5)),
    Row("cuda", marks=(pytest.mark.gpu,)),
    Row("cuda", ROWS, marks=(pytest.mark.gpu,)),
)


@pytest.fixture(scope="module", params=[pytest.param(row, marks=row.marks, id=str(row)) for row in SUITE])
def ops(request: pytest.FixtureRequest) -> Iterator[Backend]:
    row: Row = request.param
    try:
        backend = row.open()
    except BackendMissing as reason:
        pytest.skip(f"{row}: {reason}")
    yield backend
    if row.emulated and LAUNCHED in os.environ:
        with Path(os.environ[LAUNCHED]).open("a", encoding="utf-8") as file:
            file.writelines(f"{name} {kernel}\n" for name, kernel in backend.device.launched)
