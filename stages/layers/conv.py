"""A causal convolution that carries the tail of its input from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from kernels import Backend, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class CausalConv:
    """Output j reads inputs up to stride * j + stride - 1; kernel - stride zeros stand before the first."""

    weight: Tensor  # [N, C, k]
    bias: Tensor | None  # [N]
    stride: int

    def open(self, ops: Backend, lanes: int) -> Tensor:
        """A tail of zeros [B, k - stride, C]."""
        _, width, kernel = self.weight.shape
        return ops.zeros((lanes, kernel - self.stride, width))

    def step(self, ops: Backend, out: Tensor, tail: Tensor, x: Tensor, active: Tensor) -> None:
        """out [B, T / stride, N] from x [B, T, C]."""
        ops.conv1d(out, tail, x, self.weight, self.bias, self.stride, active)
