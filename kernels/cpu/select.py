"""Choices: indices out of scores, and the words of a decoder's loop."""

from __future__ import annotations

from typing import Any

from kernels.cpu.plan import I32, Steps, bits
from kernels.errors import ShapeError


def argmax(out: Any, x: Any, *, steps: Steps) -> None:
    """out [...] i32 = index of the largest of x [..., N]; the first on ties."""
    if out.shape != x.shape[:-1] or not x.shape[-1]:
        raise ShapeError(f"argmax: x {x.shape} does not fit out {out.shape}")
    steps.add("argmax", out.size, steps.at(out, I32), steps.at(x), x.shape[-1], cost=4 * x.size)


def nearest(out: Any, x: Any, codebook: Any, *, steps: Steps) -> None:
    """out [...] i32 = row of codebook [N, C] nearest to x [..., C], Euclidean; the first on ties."""
    rows, width = codebook.shape
    if out.shape != x.shape[:-1] or x.shape[-1] != width or not rows:
        raise ShapeError(f"nearest: x {x.shape} in codebook {codebook.shape} does not fit out {out.shape}")
    operands = steps.at(out, I32), steps.at(x), steps.at(codebook)
    steps.add("nearest", out.size, *operands, rows, width, cost=4 * out.size * codebook.size)


def pick(
    out: Any, x: Any, run: Any, blank: int, patience: int, slope: float, limit: float, active: Any, *,
    steps: Steps,
) -> None:
    """Greedy choice with the blank-run guard: out [B] i32 from logits x [B, N]; `run` [B] counts blanks."""
    lanes, width = x.shape
    if any(words.shape != (lanes,) for words in (out, run, active)) or not 0 <= blank < width:
        raise ShapeError(f"pick: x {x.shape}, blank {blank} do not fit out {out.shape}, run {run.shape}")
    operands = steps.at(out, I32), steps.at(x), steps.at(run, I32), steps.at(active, I32)
    numbers = width, blank, patience, bits(slope), bits(limit)
    steps.add("pick", lanes, *operands, *numbers, cost=4 * x.size)


def advance(token: Any, picked: Any, prompt: Any, position: Any, active: Any, *, steps: Steps) -> None:
    """The next input of active lanes: token[b] = prompt[position[b]] while inside it, else picked[b]."""
    words = token, picked, position, active
    if any(each.shape != token.shape for each in words) or len(prompt.shape) != 1:
        raise ShapeError(f"advance: {', '.join(str(each.shape) for each in words)} and prompt {prompt.shape}")
    operands = (steps.at(each, I32) for each in (token, picked, prompt, position, active))
    steps.add("advance", token.size, *operands, prompt.size)
