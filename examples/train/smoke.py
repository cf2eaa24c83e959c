"""`train.py --smoke`: every part of the program in half a minute, on sounds that stand for words."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import SAMPLE_RATE, Utterance
from data import FIRST_WORD, Crops
from export import export
from model import Shape
from together import rank

WORDS = ("one", "two", "three")
TINY = Shape(
    vocab=FIRST_WORD + 32,
    encoder_dim=64,
    encoder_layers=2,
    encoder_heads=1,
    encoder_ff=64,
    decoder_dim=64,
    decoder_layers=1,
    decoder_heads=2,
    decoder_kv_heads=1,
    decoder_ff=64,
)


def smoke(folder: Path, args: argparse.Namespace) -> None:
    """Train for a few seconds, report, export, resume."""
    from train import Run, train

    args = argparse.Namespace(**{**vars(args), "work": folder, "minutes": 0.1, "report": 0.05, "loaders": 0})
    spoken = [utterance(i) for i in range(6)]
    crops = Crops(spoken, [], [], list(WORDS), batch=2, progress=torch.zeros(1), widen=(0.2, 0.4))
    train(Run.start(list(WORDS), TINY), crops, [replace(spoken[0], speaker="an4-dev:smoke")], args)
    if rank():
        return
    export(folder / "latest.pt", folder / "model")
    run = Run.resume(folder / "latest.pt")
    if run.step == 0 or not math.isfinite(sum(float(w.sum()) for w in run.average.values())):
        raise SystemExit(f"smoke: {run.step} steps; weights are not finite")
    print(f"smoke: {run.step} steps, exported and resumed")


def utterance(seed: int) -> Utterance:
    """Three words, each a tone of its own."""
    order = [(seed + i) % len(WORDS) for i in range(3)]
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    pcm = np.concatenate([6000 * np.sin(2 * np.pi * 300 * (1 + word) * time) for word in order]).astype(
        np.int16
    )
    spans = tuple((WORDS[word], 0.5 * i + 0.05, 0.5 * i + 0.45) for i, word in enumerate(order))
    phones = tuple(("AA", start, end) for _, start, end in spans)
    return Utterance(f"smoke{seed}", "an4:smoke", " ".join(word for word, _, _ in spans), pcm, spans, phones)
