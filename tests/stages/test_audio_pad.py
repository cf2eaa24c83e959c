"""Pad against mistral-common's padding, sample for sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stages import ConfigError, Pad, Span, bind, pcm
from tests.compare import assert_same

OFFICIAL = {"left_ms": 2560, "right_ms": 880}
DELAYS_MS = [*range(80, 1201, 80), 2400]
LENGTHS = [1, 1279, 1280, 1281, 20_000, 20_480, 255_168]


def padded(samples: np.ndarray, rate: int = 16_000, **options: float) -> tuple[np.ndarray, Span]:
    pad = bind(Pad(pcm(rate), **options))
    packets = pad.step(samples) + pad.flush()
    spans = [p.spans[0] for p in packets]
    assert all(a.stop == b.start for a, b in pairwise(spans))
    return np.concatenate([p.data[0] for p in packets]), Span(spans[0].start, spans[-1].stop)


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
def test_padding_equals_mistral_common(official_audio, delay_ms):
    for length in LENGTHS:
        clip = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
        ours, _ = padded(clip, delay_ms=delay_ms, **OFFICIAL)
        assert_same(ours, official_audio.pad(clip, 16_000, delay_ms), what=f"{length} samples, {delay_ms} ms")


def test_left_and_right_silence_equal_mistral_commons_live_blocks(official_audio):
    pad = Pad(pcm(16_000), delay_ms=480, **OFFICIAL)
    left, right = official_audio.get_padding_audio(480.0)
    assert (pad.left, pad.right) == (len(left.audio_array), len(right.audio_array)) == (40_960, 21_760)


@pytest.mark.parametrize(
    ("samples", "total"), [(1, 64_000), (1280, 64_000), (1281, 65_280), (20_480, 83_200), (255_168, 318_720)]
)
def test_totals_are_the_published_ones(samples, total):
    ours, span = padded(np.ones(samples, np.float32), delay_ms=480, **OFFICIAL)
    assert len(ours) == len(span) == total
    assert span.start == -40_960


def test_a_stream_that_never_began_is_not_padded():
    pad = bind(Pad(pcm(16_000), delay_ms=480, **OFFICIAL))
    assert pad.step(np.zeros(0, np.float32)) + pad.flush() == []


def test_a_right_pad_of_broken_tokens_is_rounded_up_with_the_stream():
    ours, _ = padded(np.ones(100, np.float32), rate=24_000, right_ms=1500)
    assert len(ours) == 36_480  # 100 + 36000, rounded up to tokens of 1920


def test_silence_may_be_none():
    ours, span = padded(np.ones(2560, np.float32))
    assert_same(ours, np.ones(2560, np.float32), what="two whole tokens")
    assert span == Span(0, 2560)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"left_ms": 100}, r"left is 100 ms \(1600 samples\), expected a multiple of 80 ms \(1280 samples\)"),
        ({"delay_ms": 481}, "delay is 481 ms"),
        ({"right_ms": -80}, "right is -80 ms, expected 0 to"),
        ({"right_ms": float("nan")}, "right is nan ms"),
        ({"left_ms": 1e12}, "left is 1000000000000.0 ms"),
        ({"right_ms": 0.01}, "whole number of samples at 16000 Hz"),
        ({"align_ms": 0}, "align is 0 ms"),
    ],
)
def test_durations_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Pad(pcm(16_000), **wrong)
