"""The oracle: every op in float64, one loop per thing that varies, nothing clever.

Functions carry the names of the ops. They take plain arrays, return new ones and leave their arguments alone;
where an op updates state, the new state is returned. Weights come dense. No backend imports this file; all
are held against it.
"""

from __future__ import annotations

import math

import numpy as np


def linear(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x [..., M], w [N, M], bias [N] -> [..., N]."""
    out = np.zeros((*x.shape[:-1], len(w)))
    for at in np.ndindex(*x.shape[:-1]):
        for n in range(len(w)):
            out[at][n] = np.sum(_wide(x[at]) * _wide(w[n])) + (0 if bias is None else float(bias[n]))
    return out


def embed(ids: np.ndarray, table: np.ndarray) -> np.ndarray:
    """ids [...], table [N, M] -> [..., M]."""
    out = np.zeros((*ids.shape, table.shape[1]))
    for at in np.ndindex(*ids.shape):
        out[at] = table[ids[at]]
    return out


def rms_norm(x: np.ndarray, gain: np.ndarray, eps: float, scale: np.ndarray | None = None) -> np.ndarray:
    """x [..., C], gain and scale [C] -> [..., C]."""
    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:-1]):
        row = _wide(x[at])
        out[at] = row / math.sqrt(np.mean(row**2) + eps) * gain
        if scale is not None:
            out[at] *= 1 + _wide(scale)
    return out


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x [..., C], gain and bias [C] -> [..., C]."""
    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:-1]):
        row = _wide(x[at])
        out[at] = (row - np.mean(row)) / math.sqrt(np.var(row) + eps) * gain + bias
    return out


def rope(x: np.ndarray, position: np.ndarray, theta: float) -> np.ndarray:
    """x [B, T, H, D], position [B] -> [B, T, H, D]; pairs (2i, 2i+1) turn by p * theta^(-2i / D)."""
    out = _wide(x)
    lanes, items, heads, width = x.shape
    for lane, item, head, i in np.ndindex(lanes, items, heads, width // 2):
        angle = (int(position[lane]) + item) * theta ** (-2 * i / width)
        a, b = float(x[lane, item, head, 2 * i]), float(x[lane, item, head, 2 * i + 1])
        out[lane, item, head, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[lane, item, head, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def append(
    ring_k: np.ndarray, ring_v: np.ndarray, count: np.ndarray, k: np.ndarray, v: np.ndarray,
    active: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring [B, K, C, D] twice, count [B], k and v [B, T, K, D] -> the ring and the counts that follow."""
    ring_k, ring_v, count = ring_k.copy(), ring_v.copy(), count.copy()
    for lane in range(len(k)):
        if not active[lane]:
            continue
        for item in range(k.shape[1]):
            slot = count[lane] % ring_k.shape[2]
            ring_k[lane, :, slot], ring_v[lane, :, slot] = k[lane, item], v[lane, item]
            count[lane] += 1
    return ring_k, ring_v, count


def attend(
    q: np.ndarray, ring_k: np.ndarray, ring_v: np.ndarray, count: np.ndarray, window: int
) -> np.ndarray:
    """q [B, T, H, D] over the ring [B, K, C, D] -> [B, T, H, D]; a lane that has not begun gives zeros."""
    out = np.zeros(q.shape)
    lanes, items, heads, width = q.shape
    shared = heads // ring_k.shape[1]  # query heads per key head
    for lane, item, head in np.ndindex(lanes, items, heads):
        own = int(count[lane]) - items + item  # this item's position
        seen = range(max(0, own - window + 1), own + 1)
        if own < 0:
            continue
        slots = [position % ring_k.shape[2] for position in seen]
        query = _wide(q[lane, item, head]) / math.sqrt(width)
        scores = np.array([np.sum(query * _wide(ring_k[lane, head // shared, slot])) for slot in slots])
        weights = np.exp(scores - scores.max())
        for weight, slot in zip(weights / weights.sum(), slots, strict=True):
            out[lane, item, head] += weight * _wide(ring_v[lane, head // shared, slot])
    return out


def conv1d(
    tail: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, stride: int, active: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """x [B, T, C] behind tail [B, k - stride, C], w [N, C, k] -> out [B, T / stride, N] and the next tail."""
    lanes, items, _ = x.shape
    rows, _, taps = w.shape
    out, after = np.zeros((lanes, items // stride, rows)), tail.copy()
    for lane in range(lanes):
        heard = np.concatenate((tail[lane], x[lane]))  # [k - stride + T, C]
        for step, n in np.ndindex(items // stride, rows):
            for tap in range(taps):
                out[lane, step, n] += np.sum(_wide(heard[step * stride + tap]) * _wide(w[n, :, tap]))
            out[lane, step, n] += 0 if bias is None else float(bias[n])
        if active[lane]:
            after[lane] = heard[items:]
    return out, after


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two of a shape -> the same."""
    return _wide(x) + _wide(y)


def gelu(x: np.ndarray) -> np.ndarray:
    """Any shape -> the same."""
    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        value = float(x[at])
        out[at] = value / 2 * math.erfc(-value / math.sqrt(2))  # 1 + erf(x), without losing the left tail
    return out


def elu(x: np.ndarray) -> np.ndarray:
    """Any shape -> the same."""
    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        value = float(x[at])
        out[at] = value if value > 0 else math.expm1(value)
    return out


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Two of a shape -> the same."""
    out = np.zeros(gate.shape)
    for at in np.ndindex(*gate.shape):
        value = float(gate[at])
        out[at] = value * 0.5 * (1 + math.tanh(value / 2)) * float(up[at])
    return out


def argmax(x: np.ndarray) -> np.ndarray:
    """x [..., N] -> [...] i32; the first on ties."""
    out = np.zeros(x.shape[:-1], np.int32)
    for at in np.ndindex(*x.shape[:-1]):
        out[at] = max(range(x.shape[-1]), key=lambda n: (x[at][n], -n))
    return out


def nearest(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """x [..., C], codebook [N, C] -> [...] i32; the first on ties."""
    out = np.zeros(x.shape[:-1], np.int32)
    for at in np.ndindex(*x.shape[:-1]):
        gaps = [np.sum((_wide(x[at]) - _wide(row)) ** 2) for row in codebook]
        out[at] = min(range(len(codebook)), key=lambda n: (gaps[n], n))
    return out


def pick(
    x: np.ndarray, run: np.ndarray, blank: int, patience: int, slope: float, limit: float, active: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits x [B, N], run [B] -> choices [B] i32 (0 for idle lanes) and the next run."""
    out, after = np.zeros(len(x), np.int32), run.copy()
    for lane in range(len(x)):
        if not active[lane]:
            continue
        logits = _wide(x[lane])
        if run[lane] > patience:
            logits[blank] -= min(limit, slope * (run[lane] - patience))
        out[lane] = argmax(logits)
        after[lane] = run[lane] + 1 if out[lane] == blank else 0
    return out, after


def advance(
    token: np.ndarray, picked: np.ndarray, prompt: np.ndarray, position: np.ndarray, active: np.ndarray
) -> np.ndarray:
    """token, picked, position [B], prompt [P] -> the next token [B]."""
    after = token.copy()
    for lane in range(len(token)):
        if active[lane]:
            inside = position[lane] < len(prompt)
            after[lane] = prompt[position[lane]] if inside else picked[lane]
    return after


def _wide(array: np.ndarray) -> np.ndarray:
    """A float64 copy."""
    return np.array(array, np.float64)
