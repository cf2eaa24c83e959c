"""Transformer layers one upon another, with the rings and buffers they need: the body of every model here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels import Backend, Ring, Tensor
from stages.layers.attention import Attention, AttentionScratch
from stages.layers.mlp import GatedMlp, MlpScratch
from stages.packet import Packet


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One attention, then one feed-forward part."""

    attention: Attention
    mlp: GatedMlp


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Buffers for steps of `items` items."""

    items: int
    attention: AttentionScratch
    mlp: MlpScratch


@dataclass(slots=True, eq=False)
class StackState:
    """One ring per layer, and the buffers of the last step's length."""

    rings: tuple[Ring, ...]
    scratch: Scratch


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Pre-norm layers over a residual stream of `width` values.

    longest : items one step may bring; the rings have room for a window and that many more
    """

    layers: tuple[Layer, ...]
    width: int
    hidden: int
    longest: int

    def lane_bytes(self, ops: Backend) -> int:
        """Keys and values of one lane with full rings."""
        return sum(layer.attention.lane_bytes(ops, self.longest) for layer in self.layers)

    def open(self, ops: Backend, lanes: int, items: int = 1) -> StackState:
        rings = tuple(layer.attention.open(ops, lanes, self.longest) for layer in self.layers)
        return StackState(rings, self._scratch(ops, lanes, items))

    def step(self, ops: Backend, state: StackState, x: Tensor, active: Tensor) -> None:
        """x [B, T, C] goes through all layers in place."""
        lanes, items, _ = x.shape
        assert items <= self.longest, f"{items} items in one step, the rings allow {self.longest}"
        if state.scratch.items != items:  # only uncaptured lengths: offline passes and their remainder
            state.scratch = self._scratch(ops, lanes, items)
        for layer, ring in zip(self.layers, state.rings, strict=True):
            layer.attention.step(ops, x, ring, active, state.scratch.attention)
            layer.mlp.step(ops, x, state.scratch.mlp)

    def clear(self, ops: Backend, state: StackState, lane: int) -> None:
        """Forget a lane: at count 0 nothing in its ring is seen."""
        for ring in state.rings:
            ops.clear(ring.count, lane)

    def _scratch(self, ops: Backend, lanes: int, items: int) -> Scratch:
        heads = self.layers[0].attention.heads
        attention = AttentionScratch.make(ops, lanes, items, self.width, heads)
        return Scratch(items, attention, MlpScratch.make(ops, lanes, items, self.width, self.hidden))


def active_lanes(ops: Backend, packet: Packet, out: Tensor) -> Tensor:
    """`out` [B] i32, set to 1 where `packet` has a span."""
    return ops.upload(np.array([span is not None for span in packet.spans], np.int32), out)
