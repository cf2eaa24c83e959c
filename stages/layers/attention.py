"""Attention with a sliding window over a ring of keys and values, as both models have it.

x ──norm──┬─ q ─ rope ────────────┐
 │        ├─ k ─ rope ─ ring ─────┤ attend ── wo ──(+)── x
 │        └─ v ─────── ring ──────┘                 │
 └──────────────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels import Backend, Ring, Tensor
from kernels.fused import QkvWeights, attend_linear_residual, norm_qkv_rope_append


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of one attention.

    count, kept : query heads H and key heads K; H / K queries share a key
    width : D
    window : keys a query sees, its own position included
    theta, eps : of RoPE, and of the norm before
    """

    count: int
    kept: int
    width: int
    window: int
    theta: float
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class AttentionScratch:
    """Buffers of one step of T items, shared by all layers of a stack."""

    h: Tensor  # [B, T, C]
    q: Tensor  # [B, T, H, D]
    k: Tensor  # [B, T, K, D]
    v: Tensor  # [B, T, K, D]
    mix: Tensor  # [B, T, H, D]
    y: Tensor  # [B, T, C]

    @classmethod
    def make(cls, ops: Backend, lanes: int, items: int, width: int, heads: Heads) -> AttentionScratch:
        rows = (lanes, items)
        kept = (*rows, heads.kept, heads.width)
        asked, wide = (*rows, heads.count, heads.width), (*rows, width)
        return cls(*(ops.zeros(shape) for shape in (wide, asked, kept, kept, asked, wide)))


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """One layer's attention: its weights and its shape."""

    qkv: QkvWeights
    out: Any  # [C, H * D]
    out_bias: Tensor | None
    heads: Heads

    def open(self, ops: Backend, lanes: int, longest: int) -> Ring:
        """An empty ring with room for the window and a step of `longest` items."""
        return ops.ring(lanes, self.heads.kept, self.heads.window + longest - 1, self.heads.width)

    def lane_bytes(self, ops: Backend, longest: int) -> int:
        """What one lane of that ring takes."""
        return ops.ring_bytes(self.heads.kept, self.heads.window + longest - 1, self.heads.width)

    def step(self, ops: Backend, x: Tensor, ring: Ring, active: Tensor, s: AttentionScratch) -> None:
        """x [B, T, C] += attention(x); the T items are appended to `ring`."""
        numbers = {"eps": self.heads.eps, "theta": self.heads.theta}
        norm_qkv_rope_append(ops, s.q, ring, x, self.qkv, active, **numbers, h=s.h, k=s.k, v=s.v)
        attend_linear_residual(
            ops, x, s.q, ring, self.heads.window, self.out, self.out_bias, mix=s.mix, y=s.y
        )
