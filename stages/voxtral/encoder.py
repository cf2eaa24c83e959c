"""Voxtral's causal audio encoder: two convolutions and a transformer with a window of 15 seconds.

mel [T, 128] ─ conv /1 ─ gelu ─ conv /2 ─ gelu ─ [T/2, C] ─ layers ─ norm ─ frames [T/2, C]
 100 Hz                                            50 Hz                      50 Hz
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import Backend, Tensor
from kernels.fused import GateUpWeights, QkvWeights
from stages.layers.attention import Attention, Heads
from stages.layers.conv import CausalConv
from stages.layers.mlp import GatedMlp
from stages.layers.stack import Layer, Stack, StackState, active_lanes
from stages.packet import Packet
from stages.stage import Port, plug
from stages.voxtral.config import CONV_STRIDES
from stages.voxtral.names import Checkpoint

LONGEST = 64  # frames in one pass: enough to feed a matrix product, few enough to keep rings and scores small


@dataclass(slots=True, eq=False)
class EncoderState:
    """All that a lane's next frame depends on, and the buffers of the last pass's length."""

    tails: tuple[Tensor, Tensor]  # last 2 mel frames, last 1 output of the first convolution
    stack: StackState
    active: Tensor  # [B] i32
    first: Tensor  # [B, T, C] after the first convolution
    second: Tensor  # [B, T/2, C] after the second: the residual stream
    out: Tensor  # [B, T/2, C], borrowed by the next stage until the next step


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
        ops, items = self.ops, self.quantum // 2
        tails = (self.convs[0].open(ops, lanes), self.convs[1].open(ops, lanes))
        return EncoderState(
            tails, self.stack.open(ops, lanes, items), ops.zeros((lanes,), "i32"), *self._room(lanes, items)
        )

    def step(self, state: EncoderState, packet: Packet) -> list[Packet]:
        active_lanes(self.ops, packet, state.active)
        starts, hop = range(0, packet.items, self.longest), self.takes.hop
        parts = (packet.part(at, min(at + self.longest, packet.items), hop) for at in starts)
        return [self._pass(state, part) for part in parts]

    def flush(self, state: EncoderState, lane: int = 0) -> list[Packet]:
        """Nothing is held back: the delay drains through the right padding."""
        for tail in state.tails:
            self.ops.clear(tail, lane)
        self.stack.clear(self.ops, state.stack, lane)
        return []

    def _pass(self, state: EncoderState, packet: Packet) -> Packet:
        ops, mel = self.ops, packet.data
        lanes, items = mel.shape[0], mel.shape[1] // 2
        if items != state.second.shape[1] or items != self.quantum // 2:
            # a pass of another length; its output must outlive the next pass of the same step
            state.first, state.second, state.out = self._room(lanes, items)
        self.convs[0].step(ops, state.first, state.tails[0], mel, state.active)
        ops.gelu(state.first, state.first)
        self.convs[1].step(ops, state.second, state.tails[1], state.first, state.active)
        ops.gelu(state.second, state.second)
        self.stack.step(ops, state.stack, state.second, state.active)
        ops.rms_norm(state.out, state.second, self.norm, self.eps)
        return Packet(state.out, packet.spans)

    def _room(self, lanes: int, items: int) -> tuple[Tensor, Tensor, Tensor]:
        first, second, out = (self.ops.zeros((lanes, n, self.gives.width)) for n in (2 * items, items, items))
        return first, second, out


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
