"""The backends under test, in one place: a new one joins every test of the suite as one more row."""

from __future__ import annotations

from typing import Any

import pytest

from kernels import Backend, BackendMissing, open_backend

SUITE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("portable", {}),
    ("portable", {"widen_bytes": 0}),  # every quantised matrix stays stored
)


def _name(row: tuple[str, dict[str, Any]]) -> str:
    backend, options = row
    return "-".join([backend, *(f"{key}={value}" for key, value in options.items())])


@pytest.fixture(scope="module", params=SUITE, ids=_name)
def ops(request: pytest.FixtureRequest) -> Backend:
    backend, options = request.param
    try:
        return open_backend(backend, **options)
    except BackendMissing as reason:
        pytest.skip(f"{backend}: {reason}")
