"""What a tick cannot be faster than, measured here and now: the peers that `bench` sets beside its figures.

read    every stored weight read once, at the speed this machine, or the GPU at work, reads its memory
numpy   the matrix products of one tick, bare f32 matrices through NumPy's BLAS
linear  the same products by the backend, from the weights as they are stored
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from statistics import median

import numpy as np

from kernels import Backend
from kernels.cuda.backend import Cuda
from pipeline.tools import card_ops
from stages.voxtral.names import Checkpoint, Row

POOL_WEIGHTS = 1 << 26  # 256 MiB of f32: larger than any cache, smaller than a large model
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Floors:
    """Milliseconds a tick would take for each, and how fast memory was read (bytes a second)."""

    read_bytes_s: float
    read_ms: float
    numpy_ms: float
    linear_ms: float


def measure_floors(checkpoint: Checkpoint, backend: Backend) -> Floors:
    """Measure all three for the model in `checkpoint`; takes a few ticks' time each."""
    speed = card_ops.read_speed(backend) if isinstance(backend, Cuda) else read_speed()
    stored = sum(entry.nbytes for entry in checkpoint.weights.entries.values())
    return Floors(speed, 1000 * stored / speed, numpy_ms(checkpoint), linear_ms(checkpoint, backend))


def products(checkpoint: Checkpoint) -> Iterator[tuple[Row, int]]:
    """Every matrix of the model with the columns it is multiplied by in one tick: positions of 80 ms."""
    positions = checkpoint.config.downsample
    for row in checkpoint.rows.values():
        if row.name.startswith("encoder.conv"):
            continue  # a hundredth of a tick, and no plain product
        if row.linear and ".ada" not in row.name:  # those are folded into one vector when the model is loaded
            yield row, positions if row.name.startswith("encoder.") else 1


def read_speed() -> float:
    """Bytes a second that one dot product reads from memory, the best of a few."""
    array = np.ones(POOL_WEIGHTS, np.float32)
    return array.nbytes / min(_times(lambda: np.dot(array, array)))


def numpy_ms(checkpoint: Checkpoint) -> float:
    """One tick's products with bare matrices, one behind the other in memory as far as the pool reaches."""
    shapes = [(*row.shape, columns) for row, columns in products(checkpoint)]
    sizes = [n * m for n, m, _ in shapes]
    pool = np.full(max(min(POOL_WEIGHTS, sum(sizes)), *sizes), 0.5, np.float32)
    work, at = [], 0
    for n, m, columns in shapes:
        if at + n * m > len(pool):
            at = 0
        x = np.ones((m, columns) if columns > 1 else m, np.float32)
        work.append((pool[at : at + n * m].reshape(n, m), x, np.empty((n, *x.shape[1:]), np.float32)))
        at += n * m

    def tick() -> None:
        for w, x, out in work:
            np.dot(w, x, out=out)

    return 1000 * median(_times(tick))


def linear_ms(checkpoint: Checkpoint, backend: Backend) -> float:
    """One tick's products by `backend`, from the weights as they are stored."""
    work = [
        (
            backend.zeros((columns, row.shape[0])),
            backend.upload(np.ones((columns, row.shape[1]), np.float32)),
            backend.adopt(*checkpoint.raw(row.name)),
        )
        for row, columns in products(checkpoint)
    ]

    def multiply() -> None:
        for out, x, w in work:
            backend.linear(out, x, w)

    multiply()  # compiles and allocates what a recording may not
    replay = backend.capture(multiply)

    def tick() -> None:
        replay()
        backend.fetch(work[-1][0]).wait()  # what is still under way elsewhere counts

    return 1000 * median(_times(tick))


def parameters(checkpoint: Checkpoint) -> int:
    """Weights of the model, the tied embedding once."""
    return sum(prod(row.shape) for row in checkpoint.rows.values())


def _times(act: Callable[[], object]) -> list[float]:
    """Seconds of each of a few calls, after one that warms up."""
    act()
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        act()
        spent.append(time.perf_counter() - started)
    return spent
