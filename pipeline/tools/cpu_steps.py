"""What whole steps of a model of real size take on a processor: the decoder's, and the 80 ms tick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from kernels import Backend, Ring
from pipeline.tools.card_model import Model, frames_port, random_checkpoint, weight_bytes
from pipeline.tools.card_ops import SEED
from pipeline.tools.card_steps import MEL_SPREAD, kept_bytes
from pipeline.tools.cpu_clock import Spread, in_turns, timed
from pipeline.tools.cpu_figures import Line, Wanted
from pipeline.tools.cpu_products import Reader
from pipeline.tools.cpu_run import CpuRun
from stages import Packet, Span
from stages.voxtral.decoder import Decoder

FLOOR = Wanted(0.75)
LIVE = Wanted(1.0, below=True)
TICK = Spread(0.08, 0.08, 1)


def measure_decode(run: CpuRun) -> None:
    """A decoder step of one speaker on one thread, with a full context behind it."""
    config, position = run.sweep.config, run.sweep.position
    run.begin(f"decoder step at {position} positions, 1 thread")
    line = Line(
        f"decoder step, {position} positions, 1 thread", "ms", None, "reading", held="floor", wanted=FLOOR
    )
    need = weight_bytes(config, "decoder")
    if why := run.short_of(need):
        run.add(replace(line, why=why))
        return
    cpu = run.open(threads=1)
    ops = cast(Backend, cpu)
    decoder = Decoder(frames_port(config), random_checkpoint(config), ops, context=position)
    state = decoder.open()
    for ring in state.rings:
        fill(ops, ring, position)
    packet = Packet(ops.zeros((1, 1, config.decoder.dim)), (Span(0, config.token_hop),))

    def step() -> None:
        ops.fetch(decoder.step(state, packet)[0].data).wait()

    reader = Reader.make(cpu, run.sweep.pool_bytes, run.sweep.window_bytes)
    moved = need + kept_bytes(ops, config.decoder, position)
    found = in_turns({"read": reader.act, "step": timed(step)}, run.patience)
    run.add(replace(line, ours=found["step"], theirs=reader.seconds(found["read"], moved)))


def measure_tick(run: CpuRun) -> None:
    """80 ms of one speaker, mel frames to a token, on all threads: beside its floor, and beside 80 ms."""
    config, position = run.sweep.config, run.sweep.position
    cpu = run.open()
    ops = cast(Backend, cpu)
    what = f"80 ms tick, {position} positions, {cpu.threads} thread{'s' * (cpu.threads > 1)}"
    run.begin(what)
    live = Line(what, "ms", None, "80 ms", TICK, "time", LIVE)
    floor = Line(f"{what}, beside its floor", "ms", None, "reading", held="floor")
    need = weight_bytes(config, "")
    if why := run.short_of(need):
        run.add(replace(live, why=why))
        return
    tick = speaker(ops, Model.load(random_checkpoint(config), ops, context=position))
    reader = Reader.make(cpu, run.sweep.pool_bytes, run.sweep.window_bytes)
    heard = kept_bytes(ops, config.encoder, config.encoder.window)
    moved = need + heard + kept_bytes(ops, config.decoder, position)
    found = in_turns({"read": reader.act, "tick": timed(tick)}, run.patience)
    run.add(replace(live, ours=found["tick"]))
    run.add(replace(floor, ours=found["tick"], theirs=reader.seconds(found["read"], moved)))


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
