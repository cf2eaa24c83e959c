"""Log-mel energies, frame by frame as the samples arrive, equal to the whole clip at once.

Frame m covers samples [160 m - 200, 160 m + 200) and speaks for [160 m, 160 m + 160). At the two true ends of
a stream the missing half window is reflected, as offline front ends do; nowhere else is there an edge. The
ceiling is a constant of the model, not the clip's maximum: that is what makes the features causal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stages.errors import ConfigError
from stages.packet import Cut, Packet, Span
from stages.stage import Clock, Emission, Port, Row, emit, in_range, per_lane, plug

RATE_HZ = 16_000
FLOOR = 1e-10  # smallest energy that is told from silence
RANGE_DECADES = 8.0  # below the ceiling everything is equally silent
FRAMES_AT_ONCE = 256  # bounds the temporaries: 256 windows of 400 doubles are 0.8 MB


@dataclass(slots=True)
class MelLane:
    """Samples from the start of the next frame's window on."""

    clock: Clock = field(default_factory=Clock)
    held: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # [< 400 samples] between steps
    at: int | None = None  # where the next frame begins; None while the first samples gather, unreflected


class Mel:
    """Log-mel energies of 25 ms windows every 10 ms, about -0.6 to 1.4; silence is exactly -0.625.

    Takes    pcm, 16 kHz
    Gives    mel, hop 160, width 128, f32 [1, T, 128]; L samples make L // 160 frames
    Holds    less than one window of samples, 1.6 kB per lane
    Latency  40 samples, 2.5 ms: half a window reaches that far past the frame's own samples

    Samples that are not finite count as 0: one NaN would else live on in an encoder's keys and values.

    Parameters
    ----------
    upstream : the port of the stage before, pcm at 16 kHz
    mels : filters, evenly spaced on the Slaney scale from 0 to 8000 Hz
    window_samples, hop_samples : length of a window, even, and the way to the next one, at most half of it
    ceiling : log10 energy of the loudest speech the model was trained on; below ceiling - 8 all is silence

    Raises
    ------
    ConfigError   if a size is out of range

    Source: params.json of the checkpoint; transformers' feature extractor, mistral-common's filter bank.
    """

    quantum = 1

    def __init__(
        self, upstream: Port, *, mels: int = 128, window_samples: int = 400, hop_samples: int = 160,
        ceiling: float = 1.5,
    ):  # fmt: skip
        self.takes = plug("mel", upstream, "pcm", RATE_HZ)
        in_range("mel", "window", window_samples, 2, RATE_HZ)
        in_range("mel", "hop", hop_samples, 1, window_samples // 2)
        in_range("mel", "mels", mels, 1, window_samples)
        in_range("mel", "ceiling", ceiling, -100, 100)
        if window_samples % 2:
            raise ConfigError(f"mel: window is {window_samples!r} samples, expected an even number")
        self.gives = Port("mel", RATE_HZ, hop_samples, mels)
        self.lookahead = window_samples // 2 - hop_samples
        self.window, self.hop, self.ceiling = window_samples, hop_samples, float(ceiling)
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)  # periodic
        self._filters = _Filters(mel_filters(window_samples // 2 + 1, mels))

    def open(self, lanes: int = 1) -> list[MelLane]:
        return [MelLane() for _ in range(lanes)]

    def step(self, state: list[MelLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[MelLane], lane: int = 0) -> list[Emission]:
        ended, state[lane] = state[lane], MelLane()
        stop, half = ended.clock.next, self.window // 2
        if stop is None:
            return []
        if ended.at is None:  # shorter than half a window: both edges at once
            at, frames = stop - len(ended.held), len(ended.held) // self.hop
            padded = np.pad(ended.held, half, "reflect") if frames else ended.held
        else:
            at, frames = ended.at, (stop - ended.at) // self.hop
            padded = np.pad(ended.held, (0, self.lookahead), "reflect") if frames else ended.held
        return emit(len(state), lane, [self._row(padded, frames, at)] if frames else [])

    def _lane(self, lane: MelLane, items: np.ndarray, span: Span) -> list[Row | Cut]:
        lane.clock.advance("mel", span)
        lane.held = np.concatenate([lane.held, np.where(np.isfinite(items), items, 0).astype(np.float32)])
        if lane.at is None:
            if len(lane.held) < self.window // 2:
                return []
            lane.at, lane.held = span.stop - len(lane.held), self._reflect_left(lane.held)
        frames = (len(lane.held) - self.window) // self.hop + 1 if len(lane.held) >= self.window else 0
        if not frames:
            return []
        row = self._row(lane.held, frames, lane.at)
        lane.at, lane.held = row[1].stop, lane.held[frames * self.hop :].copy()
        return [row]

    def _reflect_left(self, samples: np.ndarray) -> np.ndarray:
        """Half a window before the first sample; its outermost one has weight 0, so it need not be known."""
        half = self.window // 2
        return np.concatenate([np.zeros(1, np.float32), samples[1:half][::-1], samples])

    def _row(self, samples: np.ndarray, frames: int, at: int) -> Row:
        windows = sliding_window_view(samples, self.window)[:: self.hop][:frames]  # [frames, window], no copy
        out = np.empty((frames, self.gives.width), np.float32)
        for i in range(0, frames, FRAMES_AT_ONCE):
            out[i : i + FRAMES_AT_ONCE] = self._log_mel(windows[i : i + FRAMES_AT_ONCE])
        return out, Span(at, at + frames * self.hop)

    def _log_mel(self, windows: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(windows * self._hann)  # [T, 201] in float64
        energy = self._filters(spectrum.real**2 + spectrum.imag**2)  # [T, 128]
        log_mel = np.log10(np.maximum(energy, FLOOR))
        return (np.maximum(log_mel, self.ceiling - RANGE_DECADES) + 4.0) / 4.0


def mel_filters(bins: int, mels: int) -> np.ndarray:
    """Slaney triangles of unit area over `bins` frequencies from 0 to 8000 Hz.

    Returns
    -------
    [bins, mels]   float64; 394 of the usual 201 * 128 are not zero

    Source: `mel_filter_bank` of mistral-common, which this equals to the bit.
    """
    grid = np.linspace(0, RATE_HZ / 2, bins)
    edges = _hz(np.linspace(_mel(0.0), _mel(RATE_HZ / 2), mels + 2))
    slopes = edges[None, :] - grid[:, None]  # [bins, mels + 2]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))[None, :]


def _mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + float(np.log(hz / 1000.0) * (27.0 / np.log(6.4)))


def _hz(mel: np.ndarray) -> np.ndarray:
    high = 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0))
    return np.where(mel < 15.0, 200.0 * mel / 3.0, high)


class _Filters:
    """A filter bank as the few weights that are not zero, summed in one fixed order.

    A matrix product rounds differently for different numbers of frames; a frame must not depend on its block.
    """

    __slots__ = ("bins", "starts", "weights")

    def __init__(self, bank: np.ndarray):
        bank = bank.T  # [mels, bins]
        empty = ~bank.any(axis=1)
        mask = bank > 0
        mask[empty, 0] = True  # an empty filter keeps one weight of zero, so that each has a run to sum
        self.bins = np.nonzero(mask)[1]
        self.weights = bank[mask]
        self.starts = np.concatenate([[0], np.cumsum(mask.sum(axis=1))[:-1]])

    def __call__(self, power: np.ndarray) -> np.ndarray:
        """[T, bins] to [T, mels]."""
        return np.add.reduceat(power[:, self.bins] * self.weights, self.starts, axis=1)
