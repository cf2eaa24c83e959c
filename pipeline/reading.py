"""How much of the weights has been read, while stages are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np

from pipeline.progress import Report
from stages.voxtral.names import Checkpoint
from stages.weights import Weights


class Reading:
    """Counts bytes over some checkpoints.

    report : told how many have been read, of how many
    """

    def __init__(self, checkpoints: Iterable[Checkpoint], report: Report):
        entries = (entry for one in checkpoints for entry in one.weights.entries.values())
        self.total, self.done, self._report = sum(entry.nbytes for entry in entries), 0, report
        report(0, self.total)

    def watch(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, whose reading is counted."""
        return replace(checkpoint, weights=cast(Weights, _Watched(checkpoint.weights, self.add)))

    def add(self, nbytes: int) -> None:
        self.done = min(self.total, self.done + nbytes)  # what is read twice is told once
        self._report(self.done, self.total)

    def end(self) -> None:
        """All is made that is made of the weights, whether all of them were needed or not."""
        self.add(self.total - self.done)


class _Watched:
    """As `Weights`; a tensor counts when the next one is asked for, as it is read by whoever holds it."""

    def __init__(self, weights: Weights, told: Any):
        self._weights, self._told, self._under_way = weights, told, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def raw(self, name: str) -> np.ndarray:
        self._told(self._under_way)
        data = self._weights.raw(name)
        self._under_way = data.nbytes
        return data
