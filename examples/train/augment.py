"""What happens to a clean crop before the model hears it: rooms, microphones, noise, music, silence."""

from __future__ import annotations

import random

import numpy as np
from corpus import SAMPLE_RATE
from scipy.signal import fftconvolve, lfilter

Pcm = np.ndarray  # float32 in [-1, 1]


class Distortion:
    """Random distortion of crops; `noises` are recordings of unit power."""

    def __init__(self, seed: int, noises: list[Pcm]):
        self.draw = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.noises = noises

    def __call__(self, x: Pcm) -> Pcm:
        """A crop as some room, microphone and level would give it."""
        draw = self.draw
        if draw.random() < 0.3:
            x = self.room(x)
        if draw.random() < 0.5:
            x = self.tilt(x)
        level = np.sqrt(np.mean(x**2)) + 1e-5
        if draw.random() < 0.8:
            x = x + self.background(len(x)) * level * 10 ** (-draw.uniform(6, 45) / 20)
        return self.gain(x)

    def gain(self, x: Pcm) -> Pcm:
        """Set the power to something between a whisper far away and a shout near by."""
        wanted = 10 ** (self.draw.uniform(-36, -12) / 20)
        return np.clip(x * (wanted / (np.sqrt(np.mean(x**2)) + 1e-5)), -1, 1).astype(np.float32)

    def room(self, x: Pcm) -> Pcm:
        """An exponential tail of noise: 50 to 350 ms of reverberation."""
        length = int(SAMPLE_RATE * self.draw.uniform(0.05, 0.35))
        decay = np.exp(-np.arange(length) * (self.draw.uniform(4, 8) / length))
        tail = self.numbers.standard_normal(length) * decay
        tail *= self.draw.uniform(0.1, 0.6) / np.sqrt(np.sum(tail**2))
        return (x + fftconvolve(x, tail.astype(np.float32))[: len(x)]).astype(np.float32)

    def tilt(self, x: Pcm) -> Pcm:
        """More treble or more bass, by one zero or one pole."""
        a = self.draw.uniform(-0.5, 0.7)
        return (
            lfilter([1, -a], [1], x) if self.draw.random() < 0.5 else lfilter([1 - abs(a)], [1, -abs(a)], x)
        ).astype(np.float32)

    def background(self, length: int) -> Pcm:
        """Unit-power noise: white, coloured, recorded, or musical."""
        kind = self.draw.random()
        if kind < 0.3 or (kind >= 0.55 and kind < 0.9 and not self.noises):
            x = self.numbers.standard_normal(length, np.float32)
        elif kind < 0.55:
            x = lfilter(
                [1], [1, -self.draw.uniform(0.8, 0.99)], self.numbers.standard_normal(length, np.float32)
            )
        elif kind < 0.9:
            noise = self.draw.choice(self.noises)
            x = np.resize(np.roll(noise, -self.draw.randrange(len(noise))), length)
        else:
            x = music(length, self.draw, self.numbers)
        return (x / (np.std(x) + 1e-9)).astype(np.float32)

    def wordless(self, length: int) -> Pcm:
        """A crop in which nothing is said."""
        kind = self.draw.random()
        if kind < 0.1:
            return np.zeros(length, np.float32)
        if kind < 0.4:
            return self.gain(music(length, self.draw, self.numbers))
        x = self.background(length)
        if self.draw.random() < 0.4:
            x = x * (1 + 3 * self.knocks(length))
        if self.draw.random() < 0.3:
            x = self.room(x)
        return self.gain(x) * 10 ** (-self.draw.choice((0, 0, 20, 40)) / 20)

    def knocks(self, length: int) -> Pcm:
        """Envelopes of short bursts: keys, doors, steps."""
        x = np.zeros(length, np.float32)
        for _ in range(self.draw.randint(1, 12)):
            start = self.draw.randrange(length)
            size = min(length - start, int(SAMPLE_RATE * self.draw.uniform(0.01, 0.4)))
            x[start : start + size] += np.exp(-np.arange(size) * (6 / size)) * self.draw.uniform(0.3, 2)
        return x


def music(length: int, draw: random.Random, numbers: np.random.Generator) -> Pcm:
    """Chords or single notes of decaying harmonics, some with vibrato, some with a beat."""
    x = np.zeros(length, np.float32)
    beat = int(SAMPLE_RATE * draw.uniform(0.12, 0.8))
    root, decay, top = draw.uniform(55, 330), draw.uniform(0.5, 6), draw.randint(1, 10)
    slope, vibrato, voices = (
        draw.uniform(0.4, 2),
        draw.choice((0, 0, draw.uniform(0.001, 0.01))),
        draw.randint(1, 4),
    )
    for start in range(0, length, beat):
        size = min(length - start, int(beat * draw.choice((1, 1, 2))))
        time = np.arange(size, dtype=np.float32) / SAMPLE_RATE
        for _ in range(voices):
            pitch = root * 2 ** (draw.choice((0, 2, 4, 5, 7, 9, 11, 12, 16, 19)) / 12)
            wobble = 2 * np.pi * pitch * (time + vibrato * np.sin(2 * np.pi * 5.5 * time) / (2 * np.pi * 5.5))
            for harmonic in range(1, top + 1):
                if pitch * harmonic < 7500:
                    x[start : start + size] += (
                        np.sin(harmonic * wobble) * np.exp(-decay * time) / harmonic**slope
                    )
        if draw.random() < 0.4:
            hit = min(size, int(SAMPLE_RATE * 0.08))
            x[start : start + hit] += numbers.standard_normal(hit).astype(np.float32) * np.exp(
                -np.arange(hit) / (hit / 5)
            )
    return x
