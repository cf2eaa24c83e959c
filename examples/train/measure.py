"""Greedy texts of a model in training, and their word error rate."""

from __future__ import annotations

import math

import numpy as np
import torch
from corpus import Utterance
from data import BOS, FIRST_WORD, LEFT, STREAMING_PAD
from model import FRAME, Voxtral, log_mel, mel_filters


def word_error_rate(model: Voxtral, words: list[str], utterances: list[Utterance], delay: int = 6) -> float:
    """Percent, summed over the utterances."""
    texts = transcribe(model, words, utterances, delay)
    errors = sum(distance(u.text.split(), text.split()) for u, text in zip(utterances, texts, strict=True))
    return 100 * errors / max(1, sum(len(u.text.split()) for u in utterances))


def transcribe(model: Voxtral, words: list[str], utterances: list[Utterance], delay: int = 6) -> list[str]:
    """Text of each utterance."""
    return [spell(tokens, words) for tokens in outputs(model, utterances, delay)]


def spell(tokens: list[int], words: list[str]) -> str:
    return " ".join(words[t - FIRST_WORD] for t in tokens if FIRST_WORD <= t < FIRST_WORD + len(words))


def outputs(model: Voxtral, utterances: list[Utterance], delay: int = 6, batch: int = 32) -> list[list[int]]:
    """Tokens of each utterance: official padding, greedy, one token a frame, the prefix left out."""
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].pcm))
    tokens: list[list[int]] = [[]] * len(utterances)
    filters = mel_filters()
    for start in range(0, len(order), batch):
        picked = order[start : start + batch]
        frames = [LEFT + math.ceil(len(utterances[i].pcm) / FRAME) + delay + 11 for i in picked]
        sound = np.zeros((len(picked), max(frames) * FRAME), np.float32)
        for row, i in enumerate(picked):
            pcm = utterances[i].pcm
            sound[row, LEFT * FRAME : LEFT * FRAME + len(pcm)] = pcm / np.float32(32768)
        mel = torch.cat([log_mel(row[None], filters) for row in torch.from_numpy(sound)])
        out = model.greedy(mel, delay, bos=BOS, pad=STREAMING_PAD, left=LEFT)
        for row, i in enumerate(picked):
            tokens[i] = out[row, : frames[row] - LEFT - delay].tolist()
    return tokens


def distance(wanted: list[str], got: list[str]) -> int:
    """Least number of words to insert, delete or replace."""
    row = list(range(len(got) + 1))
    for i, a in enumerate(wanted, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]
