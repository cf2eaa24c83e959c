"""Synthetic voices, made when training starts: seasoning for rare words, never the meal. None is shipped."""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from corpus import SAMPLE_RATE, Utterance, align_all

FLITE = ("slt", "rms", "awb", "kal16")
ESPEAK = ("en-us", "en-us+f2", "en-us+m3", "en-us+f4", "en-gb", "en-gb+f3", "en-us+m7", "en-gb-scotland")


def synthesise(utterances: list[Utterance], count: int, cache: Path) -> list[Utterance]:
    """`count` sentences, made once; every process of a run makes the same."""
    if not cache.exists():
        made = pickle.dumps(speak_all(utterances, count))
        cache.write_bytes(made)
    return pickle.loads(cache.read_bytes())


def speak_all(utterances: list[Utterance], count: int, seed: int = 7) -> list[Utterance]:
    """Sentences of the corpus's own words, rare words first, spoken by whichever programs are installed."""
    voices = [("flite", v) for v in FLITE if shutil.which("flite")]
    voices += [("espeak-ng", v) for v in ESPEAK if shutil.which("espeak-ng")]
    if not voices or not count:
        return []
    draw = random.Random(seed)
    uses = Counter(word for u in utterances for word in u.text.split())
    words, weights = list(uses), [n**-0.35 for n in uses.values()]
    orders = [u.text for u in utterances if u.corpus == "barista"]

    def sentence(index: int) -> Utterance | None:
        program, voice = voices[index % len(voices)]
        own = random.Random(seed * 1000 + index)
        text = (
            own.choice(orders)
            if orders and own.random() < 0.25
            else " ".join(own.choices(words, weights, k=own.randint(3, 9)))
        )
        pcm = speak(program, voice, text, own.uniform(0.85, 1.2))
        return None if pcm is None else Utterance(f"voice{index}", f"voice:{program}-{voice}", text, pcm)

    draw.shuffle(voices)
    with ThreadPool(2) as pool:
        spoken = [u for u in pool.map(sentence, range(count)) if u is not None]
    return align_all(spoken)


def speak(program: str, voice: str, text: str, rate: float) -> np.ndarray | None:
    """int16 at 16 kHz from one of the two programs; letters become capitals, so that they are spelt."""
    text = " ".join(word.upper() if len(word) == 1 else word for word in text.split())
    command = {
        "flite": [
            "flite",
            "-voice",
            voice,
            "--setf",
            f"duration_stretch={1 / rate:.2f}",
            "-t",
            text,
            "-o",
            "/dev/stdout",
        ],
        "espeak-ng": ["espeak-ng", "-v", voice, "-s", str(int(150 * rate)), "--stdout", text],
    }[program]
    wave = subprocess.run(command, capture_output=True, check=False).stdout
    if len(wave) < 4000:
        return None
    header = 44
    rate_in = int.from_bytes(wave[24:28], "little")
    pcm = np.frombuffer(wave[header : len(wave) - (len(wave) - header) % 2], np.int16)
    return resample(pcm, rate_in)


def resample(pcm: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    return pcm if rate == SAMPLE_RATE else soxr.resample(pcm, rate, SAMPLE_RATE)
