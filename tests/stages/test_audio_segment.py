"""Segment finds utterances, keeps their openings, and is not fooled by clicks, pauses or fans."""

from __future__ import annotations

import numpy as np
import pytest

from stages import ConfigError, Cut, Segment, bind, pcm

SECOND = 16_000
BLOCK = 320
HISS_DB = -60


def hiss(seconds: float, level_db: float = HISS_DB) -> np.ndarray:
    samples = int(seconds * SECOND)
    return np.random.default_rng(samples).standard_normal(samples).astype(np.float32) * 10 ** (level_db / 20)


def voice(seconds: float, level: float = 0.2) -> np.ndarray:
    t = np.arange(int(seconds * SECOND)) / SECOND
    return (level * np.sin(2 * np.pi * 200 * t) + hiss(seconds)).astype(np.float32)


def utterances(*clips: np.ndarray, **options) -> list[tuple[int, int, bool]]:
    """Start, stop and whether a cut stands after it, of every run of samples passed on."""
    segment, runs = bind(Segment(pcm(SECOND), **options)), []
    samples = np.concatenate(clips).astype(np.float32)
    said = [out for i in range(0, len(samples), 777) for out in segment.step(samples[i : i + 777])]
    for out in said + segment.flush():
        if isinstance(out, Cut):
            assert out.at == runs[-1][1]
            runs[-1] = (*runs[-1][:2], True)
        elif runs and runs[-1][1] == out.spans[0].start and not runs[-1][2]:
            runs[-1] = (runs[-1][0], out.spans[0].stop, False)
        else:
            runs.append((out.spans[0].start, out.spans[0].stop, False))
    return runs


def test_two_sentences_become_two_utterances_with_a_cut_after_each():
    first, second = utterances(hiss(1), voice(1), hiss(2), voice(1), hiss(2))
    assert first == (SECOND - 4800, 2 * SECOND + 12_800, True)  # 300 ms before, 800 ms after
    assert second == (4 * SECOND - 4800, 5 * SECOND + 12_800, True)


def test_an_utterance_cut_short_by_the_end_is_passed_to_its_last_sample():
    assert utterances(hiss(1), voice(0.5), np.zeros(123)) == [(SECOND - 4800, SECOND + 8123, False)]


def test_speech_from_the_first_sample_on_is_kept():
    assert utterances(voice(1), hiss(1)) == [(0, SECOND + 12_800, True)]


def test_a_pre_roll_never_repeats_what_was_said():
    first, second = utterances(hiss(1), voice(1), hiss(0.9), voice(1), hiss(1), preroll_ms=500)
    assert first[1] == second[0]


def test_silence_brings_nothing():
    assert utterances(np.zeros(3 * SECOND)) == utterances(hiss(3)) == utterances(hiss(3, -50)) == []


def test_a_click_opens_nothing():
    click = hiss(2)
    click[SECOND : SECOND + 300] = 0.9
    assert utterances(click) == []


def test_a_pause_between_words_does_not_end_an_utterance():
    assert len(utterances(hiss(1), voice(1), hiss(0.5), voice(1), hiss(2))) == 1


def test_a_fall_between_the_thresholds_does_not_end_an_utterance():
    murmur = hiss(3, HISS_DB + 9)  # above off (6 dB), below on (12 dB); the floor climbs towards it meanwhile
    run, *rest = utterances(hiss(1), voice(1), murmur[: int(0.9 * SECOND)], voice(1), hiss(2))
    assert rest == []
    assert run[2]
    assert utterances(hiss(1), murmur, hiss(1)) == []


def test_a_fan_is_speech_for_seconds_and_noise_from_then_on():
    ((start, stop, cut),) = utterances(hiss(2), hiss(30, -40))
    assert cut
    assert stop - start < 10 * SECOND


def test_a_voice_is_heard_beside_the_fan():
    fan = hiss(20, -40)
    talk = fan + np.concatenate([np.zeros(15 * SECOND), voice(1), np.zeros(4 * SECOND)])
    *_, last = utterances(talk)
    assert last[0] == pytest.approx(15 * SECOND - 4800, abs=BLOCK)
    assert last[2]


def test_an_utterance_longer_than_allowed_is_cut_without_loss():
    runs = utterances(voice(5), max_s=2)
    assert [r[2] for r in runs] == [True, True, False]
    assert [a[1] for a in runs[:-1]] == [b[0] for b in runs[1:]]


def test_a_limit_shorter_than_a_block_is_still_a_limit():
    _, *later = utterances(voice(0.2), max_s=0.005)
    assert later
    assert all(stop - start <= BLOCK for start, stop, _ in later)


def test_what_is_held_while_waiting_is_bounded():
    segment = Segment(pcm(SECOND))
    bound = bind(segment)
    for _ in range(60):
        bound.step(hiss(1.01))
        assert len(bound.state[0].held) <= segment.lookahead


def test_samples_that_are_not_finite_open_nothing():
    assert utterances(np.full(SECOND, np.nan), hiss(1)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"off_db": 20.0}, "off is 20.0, expected 0.0 to 12.0"),
        ({"silence_ms": 0}, "silence is 0, expected 20 to"),
        ({"preroll_ms": -1}, "preroll is -1"),
        ({"max_s": float("inf")}, "max is inf"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Segment(pcm(SECOND), **options)
