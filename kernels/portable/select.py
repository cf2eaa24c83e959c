"""Choices: indices out of scores, and the words of a decoder's loop."""

from __future__ import annotations

import numpy as np


def argmax(out: np.ndarray, x: np.ndarray) -> None:
    """out [...] i32 = index of the largest of x [..., N]; the first on ties."""
    out[...] = x.argmax(axis=-1)


def nearest(out: np.ndarray, x: np.ndarray, codebook: np.ndarray) -> None:
    """out [...] i32 = row of codebook [N, C] nearest to x [..., C], Euclidean; the first on ties.

    Differences are squared as they are: |c|^2 - 2 x.c would cancel, and choose wrongly between near rows.
    """
    assert out.flags.c_contiguous, "nearest writes through a flat view of out"
    flat = out.reshape(-1)
    for i, point in enumerate(x.reshape(-1, x.shape[-1])):
        gap = codebook - point
        flat[i] = np.einsum("nc,nc->n", gap, gap).argmin()


def pick(
    out: np.ndarray, x: np.ndarray, run: np.ndarray, blank: int, patience: int, slope: float, limit: float,
    active: np.ndarray,
) -> None:
    """Greedy choice with the blank-run guard: out [B] i32 from logits x [B, N]; `run` [B] counts blanks."""
    for lane in np.flatnonzero(active).tolist():
        logits, excess = x[lane], int(run[lane]) - patience
        if excess > 0:
            logits = logits.copy()
            logits[blank] -= min(limit, slope * excess)
        choice = int(logits.argmax())
        out[lane] = choice
        run[lane] = run[lane] + 1 if choice == blank else 0


def advance(
    token: np.ndarray, picked: np.ndarray, prompt: np.ndarray, position: np.ndarray, active: np.ndarray
) -> None:
    """The next input of active lanes: token[b] = prompt[position[b]] while inside it, else picked[b]."""
    for lane in np.flatnonzero(active).tolist():
        at = int(position[lane])
        token[lane] = prompt[at] if at < len(prompt) else picked[lane]
