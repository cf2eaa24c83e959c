"""What a reader of weights may do with a damaged header: refuse it briefly, or find only what is there."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from kernels.quant import nbytes
from stages.errors import WeightsError
from stages.weights import Entry

MOST_MEMORY = 4 << 20  # for a header of a few hundred bytes: one window of 64 KiB and Python's own objects


def assert_refused_or_harmless(parse: Callable[[bytes], tuple[list[Entry], Any]], data: bytes) -> None:
    """`parse` raises a short `WeightsError` or gives entries inside `data`; either way in little memory."""
    tracemalloc.start()
    try:
        entries, _ = parse(data)
    except WeightsError as reason:
        assert len(str(reason)) < 1000
    else:
        assert all(e.offset + e.nbytes <= len(data) and e.nbytes == nbytes(e.kind, e.shape) for e in entries)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY
