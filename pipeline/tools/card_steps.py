"""What whole steps take on a card: the decoder's, the 80 ms tick, an offline pass, the way to a first token.

Rings are filled with random keys and values and their counters set: no thousand steps are run to stand at
position 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any, cast

import numpy as np

from kernels import Backend, Ring
from kernels.cuda import probe
from kernels.cuda.backend import Cuda
from pipeline.lanes import Lanes
from pipeline.metrics import Metrics
from pipeline.tools.card_clock import Timing
from pipeline.tools.card_figures import COMPILED, OURS, PEERS, Place, decode_place, tick_place
from pipeline.tools.card_model import Model, Unfused, dense_bytes, frames_port, weight_bytes
from pipeline.tools.card_ops import SEED, fill
from pipeline.tools.card_peers import Peers
from pipeline.tools.card_run import KV, CardRun
from stages import Mel, Packet, Span, pcm
from stages.stage import Emission
from stages.voxtral.config import Config, Tower
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import LONGEST
from stages.voxtral.names import Checkpoint, tensor_table

SPARE = 256  # positions behind the one that is measured: steps of a sample, before the ring goes round
FETCHED = f"{OURS} from upload to fetch"
MEL_SPREAD = 0.3  # of random log-mel energies


def measure_decode(run: CardRun, checkpoint: Checkpoint) -> None:
    """One lane's decoder step at every position: with both kinds of rings, and without fused kernels."""
    config = run.sweep.config
    ways: list[tuple[str, Cuda, Any]] = [(kv, ops := run.variant(kv=kv), ops) for kv in KV]
    ways.append((f"{OURS} unfused", ops := run.variant(), Unfused(ops)))
    for variant, ops, used in ways:
        run.begin(f"decoder step, {variant}")
        decoder = cache(partial(_decoder, run, checkpoint, used))
        for position in run.sweep.positions:
            moved = weight_bytes(config, "decoder") + kept_bytes(ops, config.decoder, position)
            decode = partial(_decode, run, ops, decoder, position)
            run.take(decode_place(position), variant, decode, nbytes=moved)


def measure_peers(run: CardRun, peers: Peers) -> None:
    """The same step by transformers' decoder in bf16."""
    config = run.sweep.config
    step = peers.decoder(config.decoder)
    for variant in PEERS:
        run.begin(f"decoder step, {variant}")
        for position in run.sweep.positions:
            moved = dense_bytes(config) + 4 * config.decoder.layers * config.decoder.kv_width * position
            compiled = partial(step, position, variant == COMPILED)
            run.take(decode_place(position), variant, compiled, nbytes=moved)


def measure_ticks(run: CardRun, checkpoint: Checkpoint) -> None:
    """Encoder, adapter and decoder for 80 ms of every lane; the encoder alone; offline; a first token."""
    config, position = run.sweep.config, run.sweep.tick_position
    for kv in KV:
        run.begin(f"ticks, keys and values as {kv}")
        ops = run.variant(kv=kv)
        model = cache(partial(_model, run, checkpoint, ops))
        listened = kept_bytes(ops, config.encoder, config.encoder.window)
        spoken = kept_bytes(ops, config.decoder, position)
        for lanes in run.sweep.lanes:
            heard = weight_bytes(config, "encoder") + lanes * listened
            moved = weight_bytes(config, "") + lanes * (listened + spoken)
            encoder = Place("step", "encoder", (("lanes", lanes),))
            run.take(encoder, kv, partial(_encoder, run, ops, model, lanes), nbytes=heard)
            run.take(tick_place(lanes, position), kv, partial(_tick, run, ops, model, lanes), nbytes=moved)
            if kv == OURS:
                fetched = partial(_fetched_tick, run, ops, model, lanes)
                run.take(tick_place(lanes, position), FETCHED, fetched, nbytes=moved)
        if kv == OURS:
            for lanes in run.sweep.recordings:
                place = Place("step", "encoder offline", (("lanes", lanes),))
                offline = partial(_offline, run, ops, model, lanes)
                run.take(place, kv, offline, flops=lanes * pass_flops(config))
            run.take(Place("step", "first token"), FETCHED, partial(_first_token, run, ops, model))


def kept_bytes(ops: Backend, tower: Tower, position: int) -> int:
    """Keys and values of all layers that one lane's step at `position` reads."""
    return tower.layers * ops.ring_bytes(tower.kv_heads, position, tower.head_dim)


def pass_flops(config: Config) -> int:
    """Multiplications and additions of the encoder's longest pass for one lane, its window full."""
    tower, frames = config.encoder, LONGEST
    rows = (row for row in tensor_table(config).values() if row.name.startswith("encoder.layers."))
    weights = sum(prod(row.shape) for row in rows if row.linear)
    return 2 * frames * (weights + 2 * tower.layers * tower.q_width * tower.window)


@dataclass(frozen=True, slots=True, eq=False)
class Speakers:
    """Some lanes of a model in the middle of their speech.

    samples : a tick's mel frames of every lane, on the host
    """

    ops: Cuda
    model: Model
    states: tuple[Any, Any, Any]
    positions: tuple[tuple[tuple[Ring, ...], int], ...]  # rings, and where their lanes stand
    samples: np.ndarray
    spans: tuple[Span, ...]

    @classmethod
    def open(cls, run: CardRun, ops: Cuda, model: Model, lanes: int) -> Speakers:
        config = run.sweep.config
        run.need(lanes * (model.encoder.lane_bytes + model.decoder.lane_bytes))
        heard, joined, said = model.encoder.open(lanes), model.adapter.open(lanes), model.decoder.open(lanes)
        positions = (heard.rings, config.encoder.window), (said.rings, run.sweep.tick_position)
        for rings, position in positions:
            for ring in rings:
                fill(ops, ring, position)
        shape = (lanes, model.encoder.quantum, config.audio.mels)
        mel = np.random.default_rng(SEED).normal(0, MEL_SPREAD, shape).astype(np.float32)
        return cls(ops, model, (heard, joined, said), positions, mel, (Span(0, config.token_hop),) * lanes)

    def rewind(self) -> None:
        for rings, position in self.positions:
            rewind(self.ops, rings, position)

    def hear(self) -> Packet:
        return Packet(self.ops.upload(self.samples), self.spans)

    def encode(self, mel: Packet) -> Packet:
        return self.model.encoder.step(self.states[0], mel)[0]

    def tick(self, mel: Packet) -> Packet:
        """Mel frames to tokens."""
        frame = self.model.adapter.step(self.states[1], self.encode(mel))[0]
        return self.model.decoder.step(self.states[2], frame)[0]


def rewind(ops: Cuda, rings: tuple[Ring, ...], position: int) -> None:
    """The next item stands at `position`, counted from 1."""
    for ring in rings:
        ops.upload(np.full(ring.count.shape, position - 1, np.int32), ring.count)


def _decoder(run: CardRun, checkpoint: Checkpoint, used: Any) -> Decoder:
    run.need(weight_bytes(run.sweep.config, "decoder"))
    return Decoder(frames_port(run.sweep.config), checkpoint, cast(Backend, used))


def _model(run: CardRun, checkpoint: Checkpoint, ops: Cuda) -> Model:
    run.need(weight_bytes(run.sweep.config, ""))
    return Model.load(checkpoint, ops, context=run.sweep.tick_position + SPARE)


def _decode(run: CardRun, ops: Cuda, load: Callable[[], Decoder], position: int) -> Timing:
    decoder = load()
    run.need(decoder.lane_bytes)
    state = decoder.open(1)
    for ring in state.rings:
        fill(ops, ring, position)
    frame = ops.zeros((1, 1, run.sweep.config.decoder.dim))
    probe.random(frame, SEED, device=ops.device)
    packet = Packet(frame, (Span(0, decoder.takes.hop),))
    before = partial(rewind, ops, state.rings, position)
    return run.watch.queued(ops, lambda: decoder.step(state, packet), before)


def _encoder(run: CardRun, ops: Cuda, load: Callable[[], Model], lanes: int) -> Timing:
    speakers = Speakers.open(run, ops, load(), lanes)
    mel = speakers.hear()
    return run.watch.queued(ops, lambda: speakers.encode(mel), speakers.rewind)


def _tick(run: CardRun, ops: Cuda, load: Callable[[], Model], lanes: int) -> Timing:
    speakers = Speakers.open(run, ops, load(), lanes)
    mel = speakers.hear()
    return run.watch.queued(ops, lambda: speakers.tick(mel), speakers.rewind)


def _fetched_tick(run: CardRun, ops: Cuda, load: Callable[[], Model], lanes: int) -> Timing:
    """The same by the clock on the wall: mel frames go up, the tokens come down and are waited for."""
    speakers = Speakers.open(run, ops, load(), lanes)

    def heard() -> None:
        ops.fetch(speakers.tick(speakers.hear()).data).wait()

    return run.watch.waited(heard, speakers.rewind)


def _offline(run: CardRun, ops: Cuda, load: Callable[[], Model], lanes: int) -> Timing:
    """The longest pass of the encoder, as recordings are heard."""
    encoder = load().encoder
    run.need(2 * lanes * encoder.lane_bytes)
    state = encoder.open(lanes)
    for ring in state.rings:
        fill(ops, ring, run.sweep.config.encoder.window)
    mel = ops.zeros((lanes, encoder.longest, run.sweep.config.audio.mels))
    probe.random(mel, SEED, device=ops.device)
    packet = Packet(mel, (Span(0, encoder.longest * encoder.takes.hop),) * lanes)
    return run.watch.queued(ops, lambda: encoder.step(state, packet))


def _first_token(run: CardRun, ops: Cuda, load: Callable[[], Model]) -> Timing:
    """From a speaker's first 80 ms, with the silence before it, to the token it gives, through the lanes."""
    model, config = load(), run.sweep.config
    stages = [("encoder", model.encoder), ("adapter", model.adapter), ("decoder", model.decoder)]
    lanes = Lanes(cast(Any, stages), ops, Metrics())
    tokens = run.sweep.silence + 1
    samples = np.zeros(tokens * config.token_hop + config.audio.hop, np.float32)  # one more: half a window
    samples[-config.token_hop :] = np.random.default_rng(SEED).normal(0, 0.1, config.token_hop)

    def speaker() -> None:
        came: list[Emission] = []
        seat = lanes.seat(came.append, lambda: None)
        mel = Mel(pcm(config.audio.rate), mels=config.audio.mels)
        for packet in mel.step(mel.open(), Packet(samples[None], (Span(0, len(samples)),))):
            seat.push(packet)
        while len(came) < tokens:
            if not lanes.step() and (pending := lanes.pending()) is not None:
                pending.wait()
        lanes.leave(seat)

    return run.watch.waited(speaker)
