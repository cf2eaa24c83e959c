"""Write `mel.npz`: what the official front end makes of three short clips. Needs transformers.

    python -m tests.golden.make_mel
"""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("mel.npz")
SAMPLES = 4800


def clips() -> dict[str, np.ndarray]:
    """Three tenths of a second each: a voice over room noise, noise that swells, a click in silence."""
    random, t = np.random.default_rng(20), np.arange(SAMPLES) / 16_000
    harmonic = np.arange(1, 25)[:, None]
    voice = np.sum(np.sin(2 * np.pi * harmonic * (120 * t + 90 * t**2)) / harmonic, axis=0)
    room = random.standard_normal(SAMPLES)
    click = np.zeros(SAMPLES)
    click[2000] = 1.0
    made = {"voice": 0.2 * voice + 1e-3 * room, "noise": 0.3 * room * t / t[-1], "click": click}
    return {name: clip.astype(np.float32) for name, clip in made.items()}


def main() -> None:
    from transformers import VoxtralRealtimeFeatureExtractor

    extract = VoxtralRealtimeFeatureExtractor()
    made = clips()
    mels = {
        f"{name}.mel": extract(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0].T
        for name, clip in made.items()
    }
    origin = {
        "program": "tests/golden/make_mel.py: VoxtralRealtimeFeatureExtractor, its defaults, f32 on the CPU",
        "transformers": version("transformers"),
        "torch": version("torch"),
        "input": "seeded; stored beside each answer",
        "date": date.today().isoformat(),
    }
    np.savez_compressed(FILE, origin=json.dumps(origin), **{f"{n}.pcm": c for n, c in made.items()}, **mels)


if __name__ == "__main__":
    main()
