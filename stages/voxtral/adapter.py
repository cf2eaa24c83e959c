"""From encoder frames to the decoder's clock: four frames side by side, two linear layers.

frames [4T, C] ─ stack ─ [T, 4C] ─ linear ─ gelu ─ linear ─ [T, D]
 50 Hz                                                  12.5 Hz
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import Backend, Tensor
from stages.layers.replay import Replays, bucket, first_lanes
from stages.packet import Packet
from stages.stage import Port, plug
from stages.voxtral.names import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class AdapterState:
    """Buffers of one step; nothing is remembered from item to item."""

    frames: Tensor  # [B, T, 4C]
    h: Tensor  # [B, T, D]
    out: Tensor  # [B, T, D], borrowed by the next stage until the next step
    replays: Replays


class Adapter:
    """Encoder frames to one decoder input per token.

    Takes    frames, 50 Hz, on the device
    Gives    frames, 12.5 Hz, as wide as the decoder
    Holds    nothing between steps
    Latency  none

    Raises
    ------
    ConfigError   if `upstream` is not as wide and fast as the checkpoint says
    """

    TAKES, GIVES = ("frames", 320), ("frames", 1280)
    lookahead = 0

    def __init__(self, upstream: Port, checkpoint: Checkpoint, backend: Backend):
        config, width = checkpoint.config, checkpoint.config.encoder.dim
        plug("voxtral.adapter", upstream, "frames", config.audio.rate, config.position_hop, width)
        self.quantum = config.downsample
        self.takes = replace(upstream, where="device")
        self.gives = Port("frames", upstream.rate, config.token_hop, config.decoder.dim, "device")
        self.ops = backend
        self.inner, self.outer = (backend.adopt(*checkpoint.raw(f"adapter.{n}")) for n in (0, 2))

    def open(self, lanes: int = 1) -> AdapterState:
        return self._state(self.ops.zeros((lanes, 1, self.quantum * self.takes.width)))

    def step(self, state: AdapterState, packet: Packet) -> list[Packet]:
        frames = packet.data.reshape(len(packet.spans), -1, self.quantum * self.takes.width)  # oldest first
        lanes = bucket(packet)
        if packet.items == self.quantum:
            self.ops.copy(frames[:lanes], out=state.frames[:lanes])
            state.replays.run(self.ops, self._run, state, lanes)
        else:  # several passes of one encoder step may be under way: keep them apart
            state = self._state(frames)
            self._run(first_lanes(state, lanes))
        return [Packet(state.out, packet.spans)]

    def flush(self, state: AdapterState, lane: int = 0) -> list[Packet]:
        return []

    def _run(self, state: AdapterState) -> None:
        """What a step computes: ops alone, so that it can be recorded."""
        self.ops.linear(state.h, state.frames, self.inner)
        self.ops.gelu(state.h, state.h)
        self.ops.linear(state.out, state.h, self.outer)

    def _state(self, frames: Tensor) -> AdapterState:
        h, out = (self.ops.zeros((*frames.shape[:2], self.gives.width)) for _ in range(2))
        return AdapterState(frames, h, out, Replays())
