"""Handles: what the ops read and write, without saying whose memory it is.

A `Tensor` is whatever a backend's `zeros` and `upload` return (an ndarray on the portable backend, a CuPy
array on CUDA); ops ask of it a shape, a reshape and a slice of leading rows. Weights that are not plain f32
are `QuantTensor`s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")  # what a weight may be stored as


class Tensor(Protocol):
    """A dense array somewhere: f32 unless said, or i32 for words (positions, tokens, flags)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def reshape(self, *shape: int) -> Any: ...
    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class QuantTensor:
    """A weight matrix [N, M] kept in its stored type.

    kind : one of KINDS
    tiles : the backend's own planes or blocks; several where one binding cannot hold the matrix
    """

    kind: str
    shape: tuple[int, ...]
    tiles: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """The last keys and values of every lane.

    k, v : [B, K, C, D]   position p lives in slot p % C; C is at least window + longest step - 1
    count : [B] i32       positions appended so far: also the position of the next item, so RoPE reads it
    k_scale, v_scale : [B, K, C], what a step of 8-bit keys and values is worth; None for wider ones
    """

    k: Any
    v: Any
    count: Any
    k_scale: Any = None
    v_scale: Any = None

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def lanes(self, count: int) -> Ring:
        """The first `count` lanes, in the same memory."""
        parts = (self.k, self.v, self.count, self.k_scale, self.v_scale)
        return Ring(*(None if part is None else part[:count] for part in parts))


class Pending:
    """An answer on its way from a device: `ready()`, `wait()`, or `await` it.

    poll : says whether the answer is here
    take : blocks until it is, and returns it
    """

    __slots__ = ("_poll", "_take")

    def __init__(self, take: Callable[[], np.ndarray], poll: Callable[[], bool] = lambda: True):
        self._take, self._poll = take, poll

    def ready(self) -> bool:
        return self._poll()

    def wait(self) -> np.ndarray:
        return self._take()
