"""What hypothesis feeds a stage: audio that speaks, hums, hisses, clicks and falls silent; slices; lanes.

All of it shrinks to silence, to one block and to every lane at work.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

SOUNDS = ("silence", "tone", "noise", "voice", "click")  # simplest first
EDGE = 401  # lengths near one window are worth more than their share


def speech(seconds: float = 1.0, rate: int = 16_000) -> SearchStrategy[np.ndarray]:
    """Up to `seconds` of mono f32 samples, inside [-1, 1], made of a few sounds; also none at all."""
    longest = int(seconds * rate)
    piece = st.tuples(
        st.sampled_from(SOUNDS),
        st.one_of(st.integers(0, min(EDGE, longest // 4)), st.integers(0, longest // 4)),
        st.integers(-70, 0),  # dB of full scale
        st.integers(0, 2**16),
    )
    return st.lists(piece, max_size=4).map(lambda pieces: _joined([_sound(*p, rate) for p in pieces]))


def features(items: int, width: int, quiet: float = 0.0) -> SearchStrategy[np.ndarray]:
    """Up to `items` rows [item, width] f32 around `quiet`: mel frames (quiet is -0.625) or encoder frames."""
    loudness = st.sampled_from((0.0, 0.1, 1.0))

    def rows(count: int, scale: float, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).standard_normal((count, width))
        return (quiet + scale * np.abs(noise) if quiet else scale * noise).astype(np.float32)

    return st.builds(rows, st.integers(0, items), loudness, st.integers(0, 2**16))


def tokens(items: int, vocabulary: int) -> SearchStrategy[np.ndarray]:
    """Up to `items` token ids [item, 1] i32 below `vocabulary`."""
    ids = st.lists(st.integers(0, vocabulary - 1), max_size=items)
    return ids.map(lambda row: np.array(row, np.int32).reshape(-1, 1))


def cuts(items: int, most: int = 12) -> SearchStrategy[list[int]]:
    """Where to slice `items` items: ascending positions strictly inside, at most `most`; [] is one block."""
    if items < 2:
        return st.just([])
    inside = st.one_of(st.integers(1, items - 1), st.integers(1, min(items - 1, EDGE)))
    return st.lists(inside, unique=True, max_size=most).map(sorted)


def lanes(count: int, longest: int, most: int = 8) -> SearchStrategy[list[tuple[int, list[int]]]]:
    """A schedule for `count` lanes: per step, how many quanta (up to `longest`) and which lanes take part."""
    working = st.lists(st.booleans(), min_size=count, max_size=count)
    active = working.map(lambda idle: [lane for lane in range(count) if not idle[lane]])
    return st.lists(st.tuples(st.integers(1, longest), active), min_size=1, max_size=most)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *pieces])


def _sound(kind: str, samples: int, level_db: int, seed: int, rate: int) -> np.ndarray:
    random, t = np.random.default_rng(seed), np.arange(samples) / rate
    if kind == "silence":
        wave = np.zeros(samples)
    elif kind == "tone":
        wave = np.sin(2 * np.pi * random.uniform(60, 4000) * t)
    elif kind == "noise":
        wave = random.uniform(-1, 1, samples)
    elif kind == "voice":  # harmonics of a gliding pitch, four syllables a second
        harmonic = np.arange(1, 13)[:, None]
        pitch = 2 * np.pi * random.uniform(80, 250) * (t + 0.1 * t**2)
        tilt = random.uniform(0.5, 1.0, (12, 1)) / harmonic
        wave = np.sum(tilt * np.sin(harmonic * pitch), axis=0) / 4 * np.sin(4 * np.pi * t) ** 2
    else:
        wave = np.zeros(samples)
        wave[random.integers(0, max(1, samples)) :][:1] = 1.0
    return np.clip(wave * 10 ** (level_db / 20), -1, 1).astype(np.float32)
