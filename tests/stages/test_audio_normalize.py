"""Normalize reaches its peak, never passes it, and never jumps without need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import ConfigError, Normalize, bind, pcm
from tests.compare import assert_close, assert_same
from tests.strategies import speech

BLOCK = 1280
ONE_ULP = 1e-6  # a gain in float64, a product rounded to float32


def normalized(samples: np.ndarray, **options) -> np.ndarray:
    stage = bind(Normalize(pcm(16_000), **options))
    packets = stage.step(samples) + stage.flush()
    return np.concatenate([np.zeros(0, np.float32), *(p.data[0] for p in packets)])


def tone(blocks: int, level: float) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 500 * np.arange(blocks * BLOCK) / 16_000)).astype(np.float32)


def test_a_quiet_voice_is_brought_to_the_peak():
    assert np.abs(normalized(tone(5, 0.1))).max() == pytest.approx(0.95, abs=ONE_ULP)


@settings(max_examples=50, deadline=None)
@given(speech(), st.floats(0.01, 100.0), st.sampled_from(["running", "whole"]))
def test_nothing_passes_the_peak(clip, loudness, scope):
    out = normalized(clip * np.float32(loudness), scope=scope)
    assert len(out) == len(clip)
    assert np.abs(out).max(initial=0.0) <= 0.95 + ONE_ULP


def test_the_gain_has_a_limit():
    quiet = tone(4, 0.02)
    assert_close(normalized(quiet, limit_db=20), quiet * 10, rtol=0, atol=ONE_ULP, what="20 dB")


def test_what_lies_under_the_gate_is_left_alone():
    hiss = np.random.default_rng(1).uniform(-9e-3, 9e-3, 5000).astype(np.float32)
    assert_same(normalized(hiss), hiss, what="-41 dB")


def test_the_gain_falls_on_a_line_to_the_sample_that_would_overshoot():
    clip = np.full(2 * BLOCK, 0.25, np.float32)
    clip[BLOCK + 640] = 0.5
    gains = normalized(clip) / clip
    assert_close(gains[:BLOCK], np.full(BLOCK, 3.8), rtol=0, atol=1e-5, what="before")
    assert_close(gains[BLOCK : BLOCK + 640], 3.8 - 1.9 * np.arange(640) / 640, rtol=0, atol=1e-5, what="line")
    assert_close(gains[BLOCK + 640 :], np.full(640, 1.9), rtol=0, atol=1e-5, what="after")


def test_the_gain_rises_over_a_whole_block_when_speech_begins():
    clip = np.concatenate([np.full(BLOCK, 5e-4, np.float32), np.full(BLOCK, 0.1, np.float32)])
    gains = normalized(clip) / clip
    assert (gains[:BLOCK] == 1).all()
    assert np.diff(gains[BLOCK - 1 :]).max() < 8.5 / BLOCK + 1e-5


def test_a_loud_block_is_remembered():
    out = normalized(np.concatenate([tone(2, 0.9), tone(4, 0.1)]))
    assert np.abs(out[-2 * BLOCK :]).max() == pytest.approx(0.1 * 0.95 / 0.9, rel=1e-4)


def test_scope_whole_is_one_gain_from_the_loudest_sample():
    clip = np.concatenate([tone(2, 0.1), tone(2, 0.4)])
    expected = clip * np.float32(0.95 / np.abs(clip).max())
    assert_close(normalized(clip, scope="whole"), expected, rtol=0, atol=ONE_ULP, what="whole")


def test_scope_whole_says_that_it_is_not_for_live_use():
    assert Normalize(pcm(16_000), scope="whole").lookahead == -1


def test_scope_whole_holds_four_hours_at_most():
    stage = bind(Normalize(pcm(1_000), scope="whole"))
    with pytest.raises(Exception, match="scope whole holds 4 hours already"):
        stage.step(np.zeros(4 * 3600 * 1_000 + 1, np.float32))


def test_scope_off_changes_nothing():
    clip = tone(3, 0.1)
    assert_same(normalized(clip, scope="off"), clip, what="off")


@pytest.mark.parametrize("scope", ["running", "whole"])
def test_samples_that_are_not_finite_count_as_silence(scope):
    clip = tone(3, 0.1)
    broken = clip.copy()
    clip[[5, 900, 2000]], broken[[5, 900, 2000]] = 0, [np.nan, np.inf, -np.inf]
    assert_same(normalized(broken, scope=scope), normalized(clip, scope=scope), what=scope)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak": 0}, "peak is 0, expected 0.01 to 1.0"),
        ({"limit_db": 99}, "limit is 99, expected 0.0 to 60.0"),
        ({"gate_db": 1}, "gate is 1, expected -120.0 to 0.0"),
        ({"block_ms": float("nan")}, "block is nan, expected 1.0 to"),
        ({"scope": "file"}, "scope is 'file', expected one of running, whole, off"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Normalize(pcm(16_000), **options)
