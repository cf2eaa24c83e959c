"""Several processes on one model: `torchrun` starts them, gloo carries gradients and weights between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def made_once(make: Callable[[], T]) -> T:
    """`make` in the first process, which fills its cache; then in the others, which find it filled."""
    made = make() if rank() == 0 else None
    if world() > 1:
        distributed.barrier()
    return made if made is not None else make()


@torch.no_grad()
def average_gradients(model: nn.Module, clock: float) -> float:
    """Over all processes; returns the mean clock, for all must agree on the learning rate."""
    if world() == 1:
        return clock
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([clock])])
    distributed.all_reduce(flat)
    flat /= world()
    unpack(flat, gradients)
    return float(flat[-1])


@torch.no_grad()
def share(matrices: list[torch.Tensor]) -> None:
    """Matrix i belongs to process i modulo their number: give each to all."""
    for owner in range(world() if world() > 1 else 0):
        owned = matrices[owner :: world()]
        flat = torch.cat([p.flatten() for p in owned])
        distributed.broadcast(flat, owner)
        unpack(flat, owned)


def unpack(flat: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Copy consecutive pieces of `flat` into `tensors`."""
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
