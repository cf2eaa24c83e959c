"""The backends under test, in one place: a new one joins every test of the suite as one more row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kernels import Backend, BackendMissing, open_backend
from tests.kernels.emulator.device import EmulatedDevice


@dataclass(frozen=True, slots=True)
class Row:
    """One backend with its options.

    emulated : compute capability of the device that the CPU stands in for; None for a real one
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
        device = EmulatedDevice(capability=self.emulated)
        return open_backend(self.backend, device=device, **self.options)


ROWS = {"kv": "q8", "layout": "rows"}  # what is not the default, in one row: nothing depends on both
SUITE = (
    Row("portable"),
    Row("portable", {"widen_bytes": 0}),  # every quantised matrix stays stored
    Row("cpu"),
    Row("cpu", {"isa": "avx2", "kv": "f32", "threads": 1}),
    Row("cpu", {"isa": "generic", "activations": "f32", "kv": "f32"}),
    Row("cuda", emulated=(9, 0)),
    Row("cuda", ROWS, emulated=(7, 5)),
    Row("cuda", marks=(pytest.mark.gpu,)),
    Row("cuda", ROWS, marks=(pytest.mark.gpu,)),
)


@pytest.fixture(scope="module", params=[pytest.param(row, marks=row.marks, id=str(row)) for row in SUITE])
def ops(request: pytest.FixtureRequest) -> Backend:
    row: Row = request.param
    try:
        return row.open()
    except BackendMissing as reason:
        pytest.skip(f"{row}: {reason}")
