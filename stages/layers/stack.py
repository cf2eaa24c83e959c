"""Transformer layers one upon another, with the rings and buffers they need: the body of every model here."""

from __future__ import annotations

from dataclasses import dataclass

from kernels import Backend, Ring, Tensor
from stages.layers.attention import Attention, AttentionScratch
from stages.layers.mlp import GatedMlp, MlpScratch


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One attention, then one feed-forward part."""

    attention: Attention
    mlp: GatedMlp


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Buffers of one step, shared by all layers."""

    attention: AttentionScratch
    mlp: MlpScratch


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

    def open(self, ops: Backend, lanes: int) -> tuple[Ring, ...]:
        """An empty ring per layer."""
        return tuple(layer.attention.open(ops, lanes, self.longest) for layer in self.layers)

    def scratch(self, ops: Backend, lanes: int, items: int) -> Scratch:
        """Buffers for steps of `items` items."""
        assert items <= self.longest, f"{items} items in one step, the rings allow {self.longest}"
        heads = self.layers[0].attention.heads
        return Scratch(
            AttentionScratch.make(ops, lanes, items, self.width, heads),
            MlpScratch.make(ops, lanes, items, self.width, self.hidden),
        )

    def step(self, ops: Backend, x: Tensor, rings: tuple[Ring, ...], active: Tensor, s: Scratch) -> None:
        """x [B, T, C] goes through all layers in place."""
        for layer, ring in zip(self.layers, rings, strict=True):
            layer.attention.step(ops, x, ring, active, s.attention)
            layer.mlp.step(ops, x, s.mlp)

    def clear(self, ops: Backend, rings: tuple[Ring, ...], lane: int) -> None:
        """Forget a lane: at count 0 nothing in its ring is seen."""
        for ring in rings:
            ops.clear(ring.count, lane)
