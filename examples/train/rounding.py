"""Q4_0 in the training loop: gradients are taken at the rounded weights and applied to the exact ones."""

from __future__ import annotations

import torch
from model import Voxtral

BLOCK = 32


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Round to Q4_0 and back: blocks of 32, one f16 scale, levels -8 to 7; the largest magnitude is -8."""
    blocks = weight.reshape(-1, BLOCK)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = extreme / -8
    inverse = torch.where(scale == 0, 0, 1 / scale)
    levels = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (levels * scale.half().float()).reshape(weight.shape)


def is_quantised(name: str, weight: torch.Tensor) -> bool:
    """Every linear weight and the embeddings; not norms, biases and convolutions."""
    return weight.dim() == 2 and not name.startswith("phone_head")


@torch.no_grad()
def swap_rounded(model: Voxtral) -> dict[str, torch.Tensor]:
    """Put rounded weights in place and give the exact ones: gradients pass the rounding straight through."""
    kept = {name: p.data for name, p in model.named_parameters() if is_quantised(name, p)}
    for name, p in model.named_parameters():
        if name in kept:
            p.data = q4_0(p.data)
    return kept


def restore(model: Voxtral, kept: dict[str, torch.Tensor]) -> None:
    for name, p in model.named_parameters():
        if name in kept:
            p.data = kept[name]
