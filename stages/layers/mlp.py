"""The gated feed-forward layer both models have: x += down(silu(gate(h)) * up(h)), h the norm of x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels import Backend, Tensor
from kernels.fused import GateUpWeights, gate_up_silu, linear_residual


@dataclass(frozen=True, slots=True, eq=False)
class MlpScratch:
    """Buffers of one step of T items, shared by all layers of a stack."""

    h: Tensor  # [B, T, C]
    gate: Tensor  # [B, T, F]
    up: Tensor  # [B, T, F]
    y: Tensor  # [B, T, C]

    @classmethod
    def make(cls, ops: Backend, lanes: int, items: int, width: int, hidden: int) -> MlpScratch:
        rows = (lanes, items)
        return cls(*(ops.zeros((*rows, n)) for n in (width, hidden, hidden, width)))


@dataclass(frozen=True, slots=True, eq=False)
class GatedMlp:
    """One layer's feed-forward part: its weights."""

    gate_up: GateUpWeights
    down: Any  # [C, F]
    down_bias: Tensor | None
    eps: float

    def step(self, ops: Backend, x: Tensor, s: MlpScratch) -> None:
        """x [B, T, C] += mlp(x)."""
        gate_up_silu(ops, s.gate, x, self.gate_up, eps=self.eps, h=s.h, up=s.up)
        linear_residual(ops, x, s.gate, self.down, self.down_bias, y=s.y)
