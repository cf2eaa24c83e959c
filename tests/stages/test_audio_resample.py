"""Resample against soxr itself, its clock against integer arithmetic, its latency against what it states."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import ConfigError, Packet, Resample, Span, bind, pcm
from tests.compare import assert_close, assert_same

RATES_HZ = [8_000, 11_025, 16_001, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000]
ATOL_REPLAY = 1e-6  # f32 rounding of soxr's FFT blocks, which fall elsewhere after a copy; 1e-7 seen


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)


def resampled(stage: Resample, samples: np.ndarray, block: int = 1000) -> np.ndarray:
    bound = bind(stage)
    packets = [p for i in range(0, len(samples), block) for p in bound.step(samples[i : i + block])]
    packets += bound.flush()
    return np.concatenate([np.zeros(0, np.float32), *(p.data[0] for p in packets)])


@pytest.mark.parametrize("rate", RATES_HZ)
def test_blocks_give_what_soxr_gives_for_the_whole_clip(rate):
    soxr = pytest.importorskip("soxr")
    clip = noise(rate // 2)
    assert_same(resampled(Resample(pcm(rate)), clip), soxr.resample(clip, rate, 16_000), what=f"{rate} Hz")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RATES_HZ), st.integers(0, 3000), st.integers(-(10**9), 10**9))
def test_clocks_are_exact_wherever_a_stream_begins(rate, samples, start):
    stage = Resample(pcm(rate))
    state = stage.open()
    known = stage.step(state, Packet(noise(samples)[None], (Span(start, start + samples),)))
    known += stage.flush(state)
    expected = (2 * samples * 16_000 + rate) // (2 * rate)  # halves up
    assert sum(p.items for p in known) == expected
    if known:
        assert known[0].spans[0].start == start * 16_000 // rate
        assert known[-1].spans[0].stop == start * 16_000 // rate + expected


@pytest.mark.parametrize("rate", RATES_HZ)
def test_no_sample_is_later_than_stated(rate):
    stage, block = Resample(pcm(rate)), max(1, rate // 997)
    bound, given_out, latest = bind(stage), 0, 0.0
    for n in range(1, 1200):
        given_out += sum(p.items for p in bound.step(np.zeros(block, np.float32)))
        latest = max(latest, n * block * 16_000 / rate - given_out)
    assert stage.lookahead - 200 < latest <= stage.lookahead


def test_the_latency_stated_for_usual_rates_is_true():
    ms = {rate: Resample(pcm(rate)).lookahead / 16 for rate in (8_000, 44_100, 48_000)}
    assert {rate: round(late) for rate, late in ms.items()} == {8_000: 117, 44_100: 41, 48_000: 38}


def test_a_pickled_lane_continues_where_it_was():
    stage, clip = Resample(pcm(44_100)), noise(44_100)
    state = stage.open()
    stage.step(state, Packet(clip[None, :30_011], (Span(0, 30_011),)))
    copied = pickle.loads(pickle.dumps(state))
    rest = Packet(clip[None, 30_011:], (Span(30_011, 44_100),))
    whole, resumed = ([*stage.step(s, rest), *stage.flush(s)] for s in (state, copied))
    assert whole[-1].spans[0].stop == resumed[-1].spans[0].stop == 16_000
    ours, expected = (np.concatenate([p.data[0] for p in packets]) for packets in (resumed, whole))
    assert_close(ours, expected, rtol=0, atol=ATOL_REPLAY, what="resumed")


def test_a_lane_holds_no_more_after_a_minute_than_after_a_second():
    stage = Resample(pcm(44_100))
    state, held = stage.open(), []
    for n in range(60):
        second = Span(n * 44_100, (n + 1) * 44_100)
        stage.step(state, Packet(np.zeros((1, 44_100), np.float32), (second,)))
        held.append(len(state[0].tail))
    assert max(held) < 5000


def test_equal_rates_pass_untouched_without_soxr(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    clip, stage = noise(1000), Resample(pcm(16_000))
    assert stage.lookahead == 0
    assert_same(resampled(stage, clip), clip, what="16 kHz")


def test_without_soxr_other_rates_name_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ConfigError, match=r"48000 Hz to 16000 Hz needs soxr.* pip install soxr"):
        Resample(pcm(48_000))


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (0, {}, "resample: 0 Hz, expected 1000 to 1000000 Hz"),
        (48_000, {"to": 10**9}, "resample: 1000000000 Hz"),
        (48_000, {"quality": "hq"}, "quality is 'hq', expected one of QQ, LQ, MQ, HQ, VHQ"),
    ],
)
def test_options_that_make_no_sense_are_refused(rate, options, message):
    with pytest.raises(ConfigError, match=message):
        Resample(pcm(rate), **options)
