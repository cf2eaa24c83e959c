"""Voxtral's causal audio encoder: two convolutions and a transformer with a window of 15 seconds.

mel [T, 128] ─ conv /1 ─ gelu ─ conv /2 ─ gelu ─ [T/2, C] ─ layers ─ norm ─ frames [T/2, C]
 100 Hz                                            50 Hz                      50 Hz
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import Backend, Ring, Tensor
from kernels.fused import GateUpWeights, QkvWeights
from stages.layers.attention import Attention, Heads
from stages.layers.conv import CausalConv
from stages.layers.mlp import GatedMlp
from stages.layers.replay import Active, Replays, bucket, first_lanes
from stages.layers.stack import Layer, Scratch, Stack
from stages.packet import Packet
from stages.stage import Port, plug
from stages.voxtral.config import CONV_STRIDES
from stages.voxtral.names import Checkpoint

LONGEST = 64  # frames in one pass: enough to feed a matrix product, few enough to keep rings and scores small


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Buffers of one pass."""

    mel: Tensor  # [B, T, M]
    first: Tensor  # [B, T, C] after the first convolution
    second: Tensor  # [B, T/2, C] after the second: the residual stream
    scratch: Scratch
    out: Tensor  # [B, T/2, C], borrowed by the next stage until the next step


@dataclass(frozen=True, slots=True, eq=False)
class EncoderState:
    """All that a lane's next frame depends on, and the pass of one token."""

    tails: tuple[Tensor, Tensor]  # last 2 mel frames, last 1 output of the first convolution
    rings: tuple[Ring, ...]
    active: Active
    room: Room
    replays: Replays


class Encoder:
    """Mel frames to encoder frames.

    Takes    mel, 100 Hz, on the device
    Gives    frames, 50 Hz
    Holds    two convolution tails and, per layer, the keys and values of one window (Voxtral Mini: 750
             frames, 15 s) and of one pass, 64 frames at most
    Latency  none: a frame needs only what came before it

    Parameters
    ----------
    upstream : the port of `mel`
    checkpoint : the weights; see `stages.voxtral.names`
    backend : where the arithmetic runs

    Raises
    ------
    ConfigError   if `upstream` has another rate, hop or number of mels than the checkpoint says
    """

    TAKES, GIVES = ("mel", 160), ("frames", 320)  # for graphs that are checked without weights
    lookahead = 0

    def __init__(self, upstream: Port, checkpoint: Checkpoint, backend: Backend):
        shape, audio = checkpoint.config.encoder, checkpoint.config.audio
        plug("voxtral.encoder", upstream, "mel", audio.rate, audio.hop, audio.mels)
        self.takes = replace(upstream, where="device")
        self.gives = Port("frames", upstream.rate, checkpoint.config.position_hop, shape.dim, "device")
        self.quantum = CONV_STRIDES[1] * checkpoint.config.downsample
        self.longest = 2 * LONGEST // self.quantum * self.quantum  # mel frames in one pass: whole tokens
        self.asks = {"Mel": {"window": audio.window, "ceiling": audio.log_mel_ceiling}}
        self.ops = backend
        self.convs = tuple(
            CausalConv(
                backend.upload(checkpoint.array(f"encoder.conv{n}.weight")),
                backend.upload(checkpoint.array(f"encoder.conv{n}.bias")),
                stride,
            )
            for n, stride in enumerate(CONV_STRIDES, start=1)
        )
        self.eps = shape.norm_eps
        self.norm = backend.upload(checkpoint.array("encoder.norm"))
        layers = tuple(_layer(checkpoint, backend, n) for n in range(shape.layers))
        self.stack = Stack(layers, shape.dim, shape.hidden_dim, LONGEST)
        self.lane_bytes = self.stack.lane_bytes(backend)

    def open(self, lanes: int = 1) -> EncoderState:
        ops, mel = self.ops, self.ops.zeros((lanes, self.quantum, self.takes.width))
        tails = (self.convs[0].open(ops, lanes), self.convs[1].open(ops, lanes))
        rings, room = self.stack.open(ops, lanes), self._room(mel, self._out(lanes, self.quantum))
        return EncoderState(tails, rings, Active.make(ops, lanes), room, Replays())

    def step(self, state: EncoderState, packet: Packet) -> list[Packet]:
        lanes = bucket(packet)
        state.active.follow(self.ops, packet)
        if packet.items == self.quantum:
            self.ops.copy(packet.data[:lanes], out=state.room.mel[:lanes])
            state.replays.run(self.ops, self._run, state, lanes)
            return [Packet(state.room.out, packet.spans)]
        starts, hop = range(0, packet.items, self.longest), self.takes.hop
        parts = (packet.part(at, min(at + self.longest, packet.items), hop) for at in starts)
        return [self._pass(state, part, lanes) for part in parts]

    def flush(self, state: EncoderState, lane: int = 0) -> list[Packet]:
        """Nothing is held back: the delay drains through the right padding."""
        for tail in state.tails:
            self.ops.clear(tail, lane)
        self.stack.clear(self.ops, state.rings, lane)
        return []

    def _pass(self, state: EncoderState, packet: Packet, lanes: int) -> Packet:
        """A pass of any length, in buffers of its own: others of the same step are under way as well."""
        out = self._out(len(packet.spans), packet.items)
        room = self._room(self.ops.copy(packet.data[:lanes]), out[:lanes])
        self._run(replace(first_lanes(state, lanes), room=room))
        return Packet(out, packet.spans)

    def _run(self, state: EncoderState) -> None:
        """What the pass in `state.room` computes: ops alone, so that it can be recorded."""
        ops, room, active = self.ops, state.room, state.active.words
        self.convs[0].step(ops, room.first, state.tails[0], room.mel, active)
        ops.gelu(room.first, room.first)
        self.convs[1].step(ops, room.second, state.tails[1], room.first, active)
        ops.gelu(room.second, room.second)
        self.stack.step(ops, room.second, state.rings, active, room.scratch)
        ops.rms_norm(room.out, room.second, self.norm, self.eps)

    def _room(self, mel: Tensor, out: Tensor) -> Room:
        first, second = self.ops.zeros((*mel.shape[:2], self.gives.width)), self.ops.zeros(out.shape)
        return Room(mel, first, second, self.stack.scratch(self.ops, *out.shape[:2]), out)

    def _out(self, lanes: int, mels: int) -> Tensor:
        return self.ops.zeros((lanes, mels // CONV_STRIDES[1], self.gives.width))


def _layer(checkpoint: Checkpoint, ops: Backend, n: int) -> Layer:
    shape = checkpoint.config.encoder
    heads = Heads(shape.heads, shape.kv_heads, shape.head_dim, shape.window, shape.rope_theta, shape.norm_eps)

    def matrix(name: str):
        return ops.adopt(*checkpoint.raw(f"encoder.layers.{n}.{name}"))

    def vector(name: str) -> Tensor:
        return ops.upload(checkpoint.array(f"encoder.layers.{n}.{name}"))

    qkv = QkvWeights(
        vector("attention_norm"), matrix("wq"), matrix("wk"), matrix("wv"),
        q_bias=vector("wq_bias"), v_bias=vector("wv_bias"),
    )  # fmt: skip
    mlp = GateUpWeights(vector("ffn_norm"), matrix("w1"), matrix("w3"))
    return Layer(
        Attention(qkv, matrix("wo"), vector("wo_bias"), heads),
        GatedMlp(mlp, matrix("w2"), vector("w2_bias"), shape.norm_eps),
    )
