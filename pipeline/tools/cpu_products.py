"""How fast a processor reads its memory, and what of that its Q4_0 products of one row reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from kernels import quant
from kernels.cpu import probe
from kernels.cpu.backend import Cpu
from pipeline.tools.card_ops import SEED, random_blocks
from pipeline.tools.card_run import Absent
from pipeline.tools.cpu_clock import Spread, cycling, in_turns, timed
from pipeline.tools.cpu_figures import Line, Wanted
from pipeline.tools.cpu_run import CpuRun
from pipeline.tools.ggml_peer import Ggml
from stages.voxtral.config import Config
from stages.voxtral.names import tensor_table

FLOOR = Wanted(0.85)
PEER = Wanted(1.5)
KIND = "q4_0"


@dataclass(frozen=True, slots=True)
class Reader:
    """Memory that is read a window at a time.

    act : reads the next window, and says how long that took
    """

    act: Callable[[], float]
    window: int

    @classmethod
    def make(cls, ops: Cpu, pool_bytes: int, window_bytes: int) -> Reader:
        """Windows in whole parts, over all of the pool."""
        window = max(1, window_bytes // probe.PART_BYTES) * probe.PART_BYTES
        pool = np.ones((max(2, pool_bytes // window), window), np.uint8)
        return cls(cycling([timed(_reading(ops, part)) for part in pool]), window)

    def seconds(self, spent: Spread, nbytes: int) -> Spread:
        """What reading `nbytes` takes at the speed of those samples."""
        return spent * (nbytes / self.window)

    def speed(self, spent: Spread) -> Spread:
        """Bytes a second."""
        return Spread(self.window / spent.best, self.window / spent.median, spent.samples)


def _reading(ops: Cpu, memory: np.ndarray) -> Callable[[], None]:
    return ops.capture(lambda: ops._do(probe.read, memory))


def shapes(config: Config) -> dict[tuple[int, int], str]:
    """Every shape of matrix that a step of the decoder reads, with the names it goes by."""
    found: dict[tuple[int, int], str] = {}
    for row in tensor_table(config).values():
        part, _, name = row.name.rpartition(".")
        if row.name == "decoder.embed":
            found[row.shape[0], row.shape[1]] = "head"
        elif part == "decoder.layers.0" and row.linear and not name.startswith("ada"):
            shape = row.shape[0], row.shape[1]
            found[shape] = f"{found[shape]}, {name}" if shape in found else name
    return found


def measure_products(run: CpuRun) -> None:
    """Each shape with weights out of memory, on one thread, in turns with reading as many bytes, and ggml."""
    run.begin("reading, and products of one row")
    ops = run.open(threads=1)
    reader = Reader.make(ops, run.sweep.pool_bytes, run.sweep.window_bytes)
    speed = in_turns({"read": reader.act}, run.patience)["read"]
    run.add(Line("reading memory, 1 thread", "GB/s", reader.speed(speed)))
    with ExitStack() as stack:
        peer: Ggml | str
        try:
            peer = stack.enter_context(Ggml.start())
        except Absent as reason:
            peer = str(reason)
        for shape, name in shapes(run.sweep.config).items():
            for line in _compared(run, ops, reader, shape, name, peer):
                run.add(line)


def _compared(
    run: CpuRun, ops: Cpu, reader: Reader, shape: tuple[int, int], name: str, peer: Ggml | str
) -> Iterator[Line]:
    """A shape beside its floor, then beside ggml; `peer` may be why there is none."""
    figure = f"Q4_0 {shape[0]} x {shape[1]} ({name}), 1 row, 1 thread"
    floor = Line(figure, "ms", None, "reading", held="floor", wanted=FLOOR)
    times = Line(f"{figure}, against ggml", "ms", None, "ggml", held="peer", wanted=PEER)
    nbytes = quant.nbytes(KIND, shape)
    each = max(1, run.sweep.window_bytes // nbytes)  # as many as are read in one sample
    copies = each * max(2, math.ceil(run.sweep.pool_bytes / (each * nbytes)))
    if why := run.short_of(2 * copies * nbytes):
        yield from (replace(floor, why=why), replace(times, why=why))
        return
    acts = {"read": reader.act, "ours": _products(ops, shape, copies, each)}
    if isinstance(peer, Ggml):
        try:
            acts[peer.name] = _theirs(peer, shape, copies, each)
        except Absent as reason:
            peer = str(reason)
    found = in_turns(acts, run.patience)
    ours = found["ours"] * (1 / each)
    yield replace(floor, ours=ours, theirs=reader.seconds(found["read"], nbytes))
    if isinstance(peer, Ggml):
        yield replace(times, ours=ours, beside=peer.name, theirs=found[peer.name] * (1 / each))
    else:
        yield replace(times, ours=ours, why=peer)


def _theirs(peer: Ggml, shape: tuple[int, int], copies: int, each: int) -> Callable[[], float]:
    turns = peer.hold(*shape, copies, each, threads=1)
    return cycling([partial(peer.multiply, turn) for turn in range(turns)])


def _products(ops: Cpu, shape: tuple[int, int], copies: int, each: int) -> Callable[[], float]:
    """One row of x times the next `each` of `copies` matrices; says how long it took."""
    raw = random_blocks(quant.nbytes(KIND, shape))
    x = ops.upload(np.random.default_rng(SEED).standard_normal((1, shape[1]), np.float32))
    out = ops.zeros((1, shape[0]))
    matrices = [ops.adopt(raw, KIND, shape) for _ in range(copies)]

    def chain(turn: list[Any]) -> Callable[[], None]:
        def work() -> None:
            for w in turn:
                ops.linear(out, x, w)

        work()
        return ops.capture(work)

    return cycling([timed(chain(matrices[at : at + each])) for at in range(0, copies, each)])
