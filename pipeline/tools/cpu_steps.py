"""What whole steps of a model of real size take on a processor: the decoder's, and the 80 ms tick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from kernels import Backend, Ring
from pipeline.tools.card_model import Model, random_checkpoint, weight_bytes
from pipeline.tools.card_ops import SEED
from pipeline.tools.card_steps import MEL_SPREAD, kept_bytes
from pipeline.tools.cpu_clock import Spread, in_turns, timed
from pipeline.tools.cpu_figures import Line, Wanted
from pipeline.tools.cpu_products import Reader
from pipeline.tools.cpu_run import CpuRun
from stages import Packet, Span

FLOOR = Wanted(0.75)
LIVE = Wanted(1.0, below=True)
TICK = Spread(0.08, 0.08, 1)
THREADS_WINDOW = 4


def measure_one_thread(run: CpuRun) -> None:
    """A decoder step with a full context behind it, and a tick, on one thread."""
    config, position = run.sweep.config, run.sweep.position
    run.begin(f"decoder step and tick at {position} positions, 1 thread")
    figure = f"decoder step, {position} positions, 1 thread"
    line = Line(figure, "ms", None, "reading", held="floor", wanted=FLOOR)
    live, floor = _ticks(position, 1)
    if why := run.short_of(weight_bytes(config, "")):
        for one in (line, live, floor):
            run.add(replace(one, why=why))
        return
    cpu = run.open(threads=1)
    ops = cast(Backend, cpu)
    model = Model.load(random_checkpoint(config), ops, context=position)
    reader = Reader.make(cpu, run.sweep.pool_bytes, run.sweep.window_bytes)
    acts = {"read": reader.act, "step": timed(writer(ops, model)), "tick": timed(speaker(ops, model))}
    found = in_turns(acts, run.long_patience)
    moved = weight_bytes(config, "decoder") + kept_bytes(ops, config.decoder, position)
    run.add(replace(line, ours=found["step"], theirs=reader.seconds(found["read"], moved)))
    _add_ticks(run, ops, (live, floor), found["tick"], reader, found["read"])


def measure_all_threads(run: CpuRun) -> None:
    """A tick on as many threads as there are cores, if that is more than one."""
    config, position = run.sweep.config, run.sweep.position
    cpu = run.open()
    if cpu.threads == 1:
        return
    run.begin(f"tick at {position} positions, {cpu.threads} threads")
    lines = _ticks(position, cpu.threads)
    if why := run.short_of(weight_bytes(config, "")):
        for one in lines:
            run.add(replace(one, why=why))
        return
    ops = cast(Backend, cpu)
    model = Model.load(random_checkpoint(config), ops, context=position)
    wide = THREADS_WINDOW * run.sweep.window_bytes  # waking the others is to cost little of it
    reader = Reader.make(cpu, run.sweep.pool_bytes, wide)
    found = in_turns({"read": reader.act, "tick": timed(speaker(ops, model))}, run.long_patience)
    _add_ticks(run, ops, lines, found["tick"], reader, found["read"])


def _ticks(position: int, threads: int) -> tuple[Line, Line]:
    """80 ms of one speaker, mel frames to a token: beside 80 ms, and beside its floor."""
    what = f"80 ms tick, {position} positions, {threads} thread{'s' * (threads > 1)}"
    return (
        Line(what, "ms", None, "80 ms", TICK, "time", LIVE),
        Line(f"{what}, beside its floor", "ms", None, "reading", held="floor"),
    )


def _add_ticks(
    run: CpuRun, ops: Backend, lines: tuple[Line, Line], tick: Spread, reader: Reader, read: Spread
) -> None:
    config, (live, floor) = run.sweep.config, lines
    heard = kept_bytes(ops, config.encoder, config.encoder.window)
    moved = weight_bytes(config, "") + heard + kept_bytes(ops, config.decoder, run.sweep.position)
    run.add(replace(live, ours=tick))
    run.add(replace(floor, ours=tick, theirs=reader.seconds(read, moved)))


def writer(ops: Backend, model: Model) -> Callable[[], None]:
    """A decoder alone, its context full: every call is the next token."""
    state = model.decoder.open()
    for ring in state.rings:
        fill(ops, ring, ring.capacity)
    frame = Packet(ops.zeros((1, 1, model.decoder.width)), (Span(0, model.decoder.takes.hop),))

    def step() -> None:
        ops.fetch(model.decoder.step(state, frame)[0].data).wait()

    return step


def speaker(ops: Backend, model: Model) -> Callable[[], None]:
    """Somebody whose windows are full: every call is their next 80 ms, to the token that comes of it."""
    states = model.encoder.open(), model.adapter.open(), model.decoder.open()
    for ring in (*states[0].rings, *states[2].rings):
        fill(ops, ring, ring.capacity)
    shape = (1, model.encoder.quantum, model.encoder.takes.width)
    mel = np.random.default_rng(SEED).normal(0, MEL_SPREAD, shape).astype(np.float32)
    span = (Span(0, model.encoder.quantum * model.encoder.takes.hop),)

    def tick() -> None:
        frames = model.encoder.step(states[0], Packet(ops.upload(mel), span))[0]
        joined = model.adapter.step(states[1], frames)[0]
        ops.fetch(model.decoder.step(states[2], joined)[0].data).wait()

    return tick


def fill(ops: Backend, ring: Ring, position: int) -> None:
    """Random keys and values at `position` positions of one lane."""
    _, heads, _, width = ring.k.shape
    random = np.random.default_rng(SEED)
    k, v = (ops.upload(random.standard_normal((1, position, heads, width), np.float32)) for _ in range(2))
    ops.append(ring, k, v, ops.upload(np.ones(1, np.int32)))
