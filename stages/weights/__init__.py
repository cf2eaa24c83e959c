"""Weights files: names, shapes and offsets, and the bytes behind them. Reads; never computes."""

from stages.weights.folder import open_weights
from stages.weights.index import Entry, Weights

__all__ = ["Entry", "Weights", "open_weights"]
