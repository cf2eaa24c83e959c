"""Mel against published values, the official front ends and a plain whole-clip computation."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import ConfigError, Mel, Packet, Span, bind, pcm
from stages.audio.mel import mel_filters
from tests.compare import assert_close, assert_same
from tests.strategies import speech

GOLDEN = Path(__file__).parents[1] / "golden" / "mel.npz"
ATOL_PUBLISHED = 1.5e-6  # float64 here, float32 there, in bins that no far louder one masks
ATOL_ORACLE = 1e-5  # the same in any bin, where the quietest is not 60 dB below the loudest
ATOL_MASKED = 3e-5  # beside a loud hum the official float32 is 2.4e-5 from its own float64
SILENCE = -0.625  # (-6.5 + 4) / 4
SECOND = np.arange(16_000)


def mel_of(samples: np.ndarray) -> np.ndarray:
    mel = bind(Mel(pcm(16_000)))
    rows = [packet.data[0] for packet in mel.step(samples.astype(np.float32)) + mel.flush()]
    return np.concatenate([np.zeros((0, 128), np.float32), *rows])


def whole_clip(samples: np.ndarray) -> np.ndarray:
    """The definition, in one go: centred windows, reflected edges, a matrix product, log10."""
    padded = np.pad(samples.astype(np.float64), 200, "reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectra = [np.fft.rfft(padded[i : i + 400] * hann) for i in range(0, len(samples) // 160 * 160, 160)]
    energy = np.abs(np.array(spectra)) ** 2 @ mel_filters(201, 128)
    return (np.maximum(np.log10(np.maximum(energy, 1e-10)), 1.5 - 8) + 4) / 4


def test_the_filter_bank_has_the_published_values():
    bank = mel_filters(201, 128)
    assert bank.shape == (201, 128)
    assert bank.sum() == pytest.approx(3.1909855285406996, abs=1e-12)
    assert bank.max() == pytest.approx(0.04168174928351783, abs=1e-15)
    assert bank[1, 0] == pytest.approx(0.012373986332636965, abs=1e-15)
    per_filter = np.count_nonzero(bank, axis=0)
    assert per_filter.sum() == 394
    assert (per_filter.min(), per_filter.max()) == (1, 9)
    assert not bank[[0, 200]].any()


def test_the_filter_bank_equals_mistral_common_to_the_bit():
    audio = pytest.importorskip("mistral_common.audio")
    assert_same(mel_filters(201, 128), audio.mel_filter_bank(201, 128, 0.0, 8000.0, 16_000), what="filters")


def test_a_tone_has_the_published_features():
    mel = mel_of(0.5 * np.sin(2 * np.pi * 440 * SECOND / 16_000))
    assert mel.shape == (100, 128)
    assert mel.dtype == np.float32
    assert mel[50].argmax() == 18
    assert mel[50, 18] == pytest.approx(1.4853541, abs=ATOL_PUBLISHED)
    assert mel[50, 100] == SILENCE
    assert mel[0, 11] == pytest.approx(1.1603, abs=5e-5)  # published to four places
    assert mel[99, 11] == pytest.approx(0.57684, abs=5e-6)
    assert mel.mean(dtype=np.float64) == pytest.approx(-0.52713712, abs=ATOL_PUBLISHED)


def test_an_impulse_has_the_published_features():
    mel = mel_of(SECOND == 8000)
    published = [SILENCE, 0.08877522, 0.59879315, 0.08877552, SILENCE]
    assert_close(mel[48:53, 64], published, rtol=0, atol=ATOL_PUBLISHED, what="impulse")


@pytest.mark.parametrize("clip", ["voice", "noise", "click"])
def test_mel_equals_the_stored_answer_of_the_official_front_end(clip):
    with np.load(GOLDEN) as golden:
        assert "VoxtralRealtimeFeatureExtractor" in json.loads(str(golden["origin"]))["program"]
        ours, official = mel_of(golden[f"{clip}.pcm"]), golden[f"{clip}.mel"]
    assert_close(ours, official, rtol=0, atol=ATOL_ORACLE, what=clip)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("room_db", "atol"), [(-25, ATOL_ORACLE), (-60, ATOL_MASKED)])
def test_mel_equals_the_official_front_end(room_db, atol):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.2")
    random, t = np.random.default_rng(4), np.arange(40_000) / 16_000
    swell = np.repeat(10 ** (random.uniform(room_db, -10, 25) / 20), 1600)
    clip = (swell * random.standard_normal(40_000) + 0.2 * np.sin(2 * np.pi * 180 * t)).astype(np.float32)
    extract = transformers.VoxtralRealtimeFeatureExtractor()
    official = extract(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0].T
    assert_close(mel_of(clip), official, rtol=0, atol=atol, what="mel")


def test_silence_is_exactly_one_value():
    assert (mel_of(np.zeros(1600)) == SILENCE).all()


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 199, 200, 201, 239, 240, 319, 320, 359, 360, 1279])
def test_short_streams_are_reflected_as_whole_clips_are(samples):
    clip = np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)
    mel = mel_of(clip)
    assert len(mel) == samples // 160
    if len(mel):
        assert_close(mel, whole_clip(clip), rtol=0, atol=1e-6, what=f"{samples} samples")


@settings(max_examples=25, deadline=None)
@given(speech(2.0))
def test_mel_equals_the_whole_clip_at_once(clip):
    if len(clip) >= 160:
        assert_close(mel_of(clip), whole_clip(clip), rtol=0, atol=1e-6, what="mel")


def test_samples_that_are_not_finite_count_as_silence():
    clip = np.random.default_rng(0).uniform(-1, 1, 3200).astype(np.float32)
    broken = clip.copy()
    clip[[5, 900, 3199]], broken[[5, 900, 3199]] = 0, [np.nan, np.inf, -np.inf]
    assert_same(mel_of(broken), mel_of(clip), what="mel")


@given(st.integers(1, 3000))
def test_a_frame_comes_as_soon_as_its_window_is_full(samples):
    mel = Mel(pcm(16_000))
    known = mel.step(mel.open(), Packet(np.zeros((1, samples), np.float32), (Span(0, samples),)))
    assert sum(p.items for p in known) == max(0, (samples - mel.lookahead) // 160)


def test_a_long_block_needs_little_more_than_its_answer():
    mel, minute = Mel(pcm(16_000)), np.zeros((1, 960_000), np.float32)
    tracemalloc.start()
    mel.step(mel.open(), Packet(minute, (Span(0, 960_000),)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    answer = 6000 * 128 * 4
    windows = 8e6
    assert peak < minute.nbytes + answer + windows, f"{peak / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("option", "value"),
    [("window_samples", 401), ("hop_samples", 0), ("hop_samples", 201), ("mels", 0), ("ceiling", np.nan)],
)
def test_sizes_that_make_no_sense_are_refused(option, value):
    with pytest.raises(ConfigError, match=rf"mel: {option.removesuffix('_samples')} is {value}.*expected"):
        Mel(pcm(16_000), **{option: value})


def test_another_rate_is_refused():
    with pytest.raises(ConfigError, match=r"mel takes pcm, rate 16000, but was given pcm \(rate 8000"):
        Mel(pcm(8_000))
