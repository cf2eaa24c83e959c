"""Batches for training: crops of speech put together on the fly, and what the model should say to them.

Targets follow the protocol of the checkpoint: at the frame where a word ends, plus the delay, STREAMING_WORD,
then the word's tokens, one a frame; STREAMING_PAD everywhere else; words that collide queue.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from augment import Distortion, Pcm
from corpus import PHONES, SAMPLE_RATE, Utterance
from model import ENCODER_PER_TOKEN, FRAME, log_mel, mel_filters
from torch.utils.data import IterableDataset

BOS, STREAMING_PAD, STREAMING_WORD = 1, 32, 33
SPECIALS, FIRST_WORD = 64, 64 + 256  # ids 64..319 are the single bytes
LEFT = 32  # frames of silence before every stream
PHONE_LAG = 0.08  # the encoder is causal: it may name a phone this late
SHORT_FRAMES, LONG_FRAMES = 100, 125  # crop lengths, padding included: 8 and 10 s
WRONG_INPUT = 0.08  # share of earlier words replaced by another: believe the sound, not the sentence
PAUSES = ((-0.04, 0.06),) * 5 + ((0.0, 0.4),) * 4 + ((0.3, 1.5),)  # s between spliced words
NOISE_TRAIN = 0.75  # of each noise recording; the rest is for the figures


@dataclass(slots=True)
class Crop:
    """Sound under construction; times in seconds from its start."""

    pcm: Pcm
    words: list[tuple[str, float, float]] = field(default_factory=list)
    phones: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, sound: Pcm, at: float, words, phones, *, cut: float = 0.0, speed: float = 1.0) -> float:
        """Lay `sound` at time `at`; its spans count from `cut` before and are `speed` times as long."""
        start = int(at * SAMPLE_RATE)
        sound = sound[: max(0, len(self.pcm) - start)]
        fade = min(160, len(sound) // 4)
        if fade:
            sound = sound.copy()
            sound[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
            sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        self.pcm[start : start + len(sound)] += sound
        for kept, given in ((self.words, words), (self.phones, phones)):
            kept += [(name, at + (a - cut) / speed, at + (b - cut) / speed) for name, a, b in given]
        return at + len(sound) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the kinds of crop; the rest is wordless."""

    whole: float = 0.52
    spliced: float = 0.28
    voices: float = 0.12


class Crops(IterableDataset):
    """An endless stream of batches (mel, tokens, targets, weights, phones, delay).

    `progress` is one shared number from 0 to 1, the share of training done: at `widen[0]` the delay
    begins to spread from six tokens, at `widen[1]` it covers 2 to 15. Learning
    all delays from the first step learns nothing.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        voices: list[Utterance],
        noises: list[Pcm],
        words: list[str],
        *,
        batch: int,
        progress: torch.Tensor,
        widen: tuple[float, float],
        mix: Mix = Mix(),
        seed: int = 1,
    ):
        self.utterances, self.voices, self.noises = utterances, voices, noises
        self.ids = {word: FIRST_WORD + i for i, word in enumerate(words)}
        self.batch, self.progress, self.widen, self.mix, self.seed = batch, progress, widen, mix, seed

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        seed = self.seed + 1000 * (worker.id if worker else 0)
        torch.set_num_threads(1)
        self.draw, self.count = random.Random(seed), 0
        self.distort = Distortion(seed, self.noises)
        self.whole_pool = Weighted(self.draw, self.utterances, [utterance_weight(u) for u in self.utterances])
        self.voice_pool = Weighted(self.draw, self.voices, [1.0] * len(self.voices))
        self.banks = self.make_banks()
        self.filters = [warped_filters(w) for w in np.linspace(0.9, 1.1, 21)]
        while True:
            yield self.make_batch()

    def make_banks(self) -> Weighted:
        """Words of each speaker, rare words first."""
        uses = Counter(word for u in self.utterances for word, _, _ in u.words)
        speakers = defaultdict(list)
        for u in self.utterances:
            if u.corpus != "wakewords":
                speakers[u.speaker] += [(u, i) for i in range(len(u.words))]
        banks = [
            Weighted(
                self.draw,
                items,
                [letter_weight(u.words[i][0]) * uses[u.words[i][0]] ** -0.4 for u, i in items],
            )
            for items in speakers.values()
        ]
        return Weighted(self.draw, banks, [1.0] * len(banks))

    def make_batch(self) -> tuple[torch.Tensor, ...]:
        draw, done = self.draw, float(self.progress[0])
        delay = self.pick_delay(done)
        self.count += 1
        share = 0.25 if done < self.widen[0] else 0.6
        long = random.Random(self.count).random() < share  # alike in all processes: none waits for another
        frames, left = (LONG_FRAMES, LEFT) if long else (SHORT_FRAMES, draw.randint(3, 12))
        rows = [self.make_row(frames, left, delay) for _ in range(self.batch)]
        mel, tokens, targets, weights, phones = (torch.stack(column) for column in zip(*rows, strict=True))
        return mel, tokens, targets, weights, phones, torch.tensor(float(delay))

    def pick_delay(self, done: float) -> int:
        spread = min(1.0, max(0.0, (done - self.widen[0]) / (self.widen[1] - self.widen[0])))
        if self.draw.random() < 0.25:
            return 6
        return self.draw.randint(6 - round(4 * spread), 6 + round(9 * spread))

    def make_row(self, frames: int, left: int, delay: int) -> tuple[torch.Tensor, ...]:
        """One crop: silence, sound, and half of the time silence again as at the end of a file."""
        draw = self.draw
        right = draw.randint(2, delay + 11) if draw.random() < 0.5 else 0
        length = max(20, frames - left - right) * FRAME
        kind = draw.random()
        if kind < self.mix.whole:
            crop = self.whole(length, self.whole_pool)
        elif kind < self.mix.whole + self.mix.spliced:
            crop = self.spliced(length)
        elif kind < self.mix.whole + self.mix.spliced + self.mix.voices and self.voices:
            crop = self.whole(length, self.voice_pool)
        else:
            crop = Crop(self.distort.wordless(length))
        pcm = self.distort(crop.pcm) if crop.phones else crop.pcm
        sound = np.zeros(frames * FRAME, np.float32)
        sound[left * FRAME : left * FRAME + length] = pcm[: frames * FRAME - left * FRAME]
        sound = np.round(sound * 32767) / np.float32(32767)
        mel = mask(log_mel(torch.from_numpy(sound)[None], draw.choice(self.filters))[0], draw)
        words = [w for w in crop.words if w[2] <= length / SAMPLE_RATE + 0.02]
        tokens, targets, weights = self.speak(words, frames, left, delay)
        return mel, tokens, targets, weights, phone_targets(crop.phones, frames, left, length)

    def whole(self, length: int, pool: Weighted) -> Crop:
        """Utterances of several speakers one after the other, some begun at a later word."""
        draw, crop = self.draw, Crop(np.zeros(length, np.float32))
        at = draw.uniform(0, 0.5)
        while at < length / SAMPLE_RATE - 0.4:
            u, speed = pool(), draw.uniform(0.86, 1.16)
            cut, words = 0.0, u.words
            if len(words) > 4 and draw.random() < 0.35:
                first = draw.randint(1, len(words) - 2)
                cut, words = (words[first - 1][2] + words[first][1]) / 2, words[first:]
            sound = stretch(u.pcm[int(cut * SAMPLE_RATE) :], speed) * draw.uniform(0.5, 1.5)
            phones = [p for p in u.phones if p[1] >= cut - 0.01]
            at = crop.add(sound, at, words, phones, cut=cut, speed=speed)
            at += draw.choice((0, 0, draw.uniform(0, 0.8)))
            if draw.random() < 0.1:
                break
        return crop

    def spliced(self, length: int) -> Crop:
        """Words of one speaker in a new order: strings nobody has read, orders nobody has given."""
        draw, crop = self.draw, Crop(np.zeros(length, np.float32))
        bank, speed = self.banks(), draw.uniform(0.86, 1.16)
        pause = draw.choice(PAUSES)
        at = draw.uniform(0.05, 0.8)
        for _ in range(draw.randint(1, 16)):
            u, first = bank()
            last = min(first + (0 if u.corpus == "an4" else draw.choice((0, 1, 1, 2, 3))), len(u.words) - 1)
            start, end = u.words[first][1], u.words[last][2]
            before = u.words[first - 1][2] if first else 0.0
            after = u.words[last + 1][1] if last + 1 < len(u.words) else len(u.pcm) / SAMPLE_RATE
            cut = start - min(0.06, max(0.0, start - before) + 0.02, start)
            stop = end + min(0.06, max(0.0, after - end) + 0.02)
            own = speed * draw.uniform(0.95, 1.05)
            sound = stretch(u.pcm[int(cut * SAMPLE_RATE) : int(stop * SAMPLE_RATE)], own)
            phones = [p for p in u.phones if p[1] >= start - 0.005 and p[2] <= end + 0.005]
            words = u.words[first : last + 1]
            at = crop.add(sound * draw.uniform(0.7, 1.3), at, words, phones, cut=cut, speed=own)
            at += draw.uniform(*pause)
            if at > length / SAMPLE_RATE - 0.3:
                break
        return crop

    def speak(self, words, frames: int, left: int, delay: int) -> tuple[torch.Tensor, ...]:
        """Input tokens, target tokens and loss weights of a crop."""
        targets = np.full(frames, STREAMING_PAD)
        free = 0
        for word, _, end in words:
            at = max(int(end * SAMPLE_RATE / FRAME) + left + delay, free)
            if at + 1 >= frames:
                break
            targets[at], targets[at + 1] = STREAMING_WORD, self.ids[word]
            free = at + 2
        tokens = np.concatenate(([BOS], targets[:-1]))
        tokens[1 : left + delay + 1] = STREAMING_PAD
        wrong = (tokens >= FIRST_WORD) & (self.distort.numbers.random(frames) < WRONG_INPUT)
        tokens[wrong] = FIRST_WORD + self.distort.numbers.integers(len(self.ids), size=int(wrong.sum()))
        weights = np.where(targets == STREAMING_PAD, 0.3, 1.0)
        weights[: left + delay] = 0
        return torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(weights).float()


class Weighted:
    """Draws items in proportion to their weights."""

    def __init__(self, draw: random.Random, items: list, weights: list[float]):
        self.draw, self.items = draw, items
        self.sums = np.cumsum(weights).tolist()

    def __call__(self):
        return self.items[bisect.bisect(self.sums, self.draw.random() * self.sums[-1])]


def utterance_weight(utterance: Utterance) -> float:
    """Long strings more than short; the wake words, half of all clips, hardly."""
    return 0.35 if utterance.corpus == "wakewords" else len(utterance.words) ** 0.6


def letter_weight(word: str) -> float:
    """Letters that rhyme with B are told apart by their first 50 ms: show them more often."""
    return 2.0 if word in set("bcdegptvz") else 1.3 if len(word) == 1 else 1.0


def stretch(pcm: np.ndarray, speed: float) -> Pcm:
    """Faster or slower, pitch and all."""
    at = np.arange(int(len(pcm) / speed), dtype=np.float32) * speed
    return np.interp(at, np.arange(len(pcm)), pcm).astype(np.float32) / 32768


def warped_filters(factor: float) -> torch.Tensor:
    """Mel filters that hear a vocal tract `factor` times as long. [128, 201]"""
    filters = mel_filters()
    at = (torch.arange(201) * factor).clamp(max=200)
    low = at.floor().long().clamp(max=199)
    share = at - low
    warped = filters[:, low] * (1 - share) + filters[:, low + 1] * share
    return warped * (filters.sum(1, keepdim=True) / warped.sum(1, keepdim=True).clamp(min=1e-4)).clamp(max=4)


def mask(mel: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Blank a few bands and, often, a few short times of mel [128, T]."""
    for _ in range(2):
        low = draw.randrange(128)
        mel[low : low + draw.randint(0, 18)] = -0.2
    for _ in range(draw.choice((0, 2, 3))):
        start = draw.randrange(mel.shape[1])
        mel[:, start : start + draw.randint(0, 14)] = -0.2
    return mel


def phone_targets(phones, frames: int, left: int, length: int) -> torch.Tensor:
    """The phone each encoder frame should name; -100 in the left padding. [4 * frames]"""
    rate = SAMPLE_RATE / FRAME * ENCODER_PER_TOKEN
    targets = np.zeros(frames * ENCODER_PER_TOKEN, np.int64)
    targets[: left * ENCODER_PER_TOKEN] = -100
    for name, start, end in phones:
        if name not in PHONE_IDS or start > length / SAMPLE_RATE:
            continue
        first, last = (left * ENCODER_PER_TOKEN + round((t + PHONE_LAG) * rate) for t in (start, end))
        targets[first:last] = PHONE_IDS[name]
    return torch.from_numpy(targets)


PHONE_IDS = {phone: index for index, phone in enumerate(PHONES) if phone != "NOISE"}


def load_noises(root: Path, *, training: bool = True) -> list[Pcm]:
    """Recorded noises of unit power: the first three quarters to train on, the last for the figures."""
    found = []
    for path in sorted((root / "noise").glob("*.flac")):
        pcm, _ = soundfile.read(path, dtype="float32")
        edge = int(len(pcm) * NOISE_TRAIN)
        pcm = pcm[:edge] if training else pcm[edge:]
        found.append(pcm / (pcm.std() + 1e-9))
    return found
