"""From encoder frames to the decoder's clock: four frames side by side, two linear layers.

frames [4T, C] ─ stack ─ [T, 4C] ─ linear ─ gelu ─ linear ─ [T, D]
 50 Hz                                                  12.5 Hz
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels import Backend, Tensor
from stages.packet import Packet
from stages.stage import Port, plug
from stages.voxtral.names import Checkpoint


@dataclass(slots=True, eq=False)
class AdapterState:
    """Buffers of the last step's length; nothing is remembered from item to item."""

    h: Tensor  # [B, T, D]
    out: Tensor  # [B, T, D], borrowed by the next stage until the next step


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
        return self._room(lanes, 1)

    def step(self, state: AdapterState, packet: Packet) -> list[Packet]:
        lanes, frames, width = packet.data.shape
        items = frames // self.quantum
        if items != 1 or state.out.shape[1] != 1:
            # several passes of one encoder step may be under way: keep them apart
            fresh = self._room(lanes, items)
            state.h, state.out = fresh.h, fresh.out
        side_by_side = packet.data.reshape(lanes, items, self.quantum * width)  # oldest frame first
        self.ops.linear(state.h, side_by_side, self.inner)
        self.ops.gelu(state.h, state.h)
        self.ops.linear(state.out, state.h, self.outer)
        return [Packet(state.out, packet.spans)]

    def flush(self, state: AdapterState, lane: int = 0) -> list[Packet]:
        return []

    def _room(self, lanes: int, items: int) -> AdapterState:
        return AdapterState(*(self.ops.zeros((lanes, items, self.gives.width)) for _ in range(2)))
