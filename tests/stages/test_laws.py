"""Every stage keeps the seven laws: one row per stage, seven property tests per row."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import Mel, Normalize, Pad, Resample, Segment, pcm
from tests.laws import LAWS, Case
from tests.strategies import speech

REPLAY_ATOL = 1e-6  # a replayed tail meets soxr's FFT blocks elsewhere: f32 rounding, 1e-7 seen

STAGES = [
    Case("pad", lambda: Pad(pcm(16_000), left_ms=160, right_ms=80, delay_ms=80), speech()),
    Case("mel", lambda: Mel(pcm(16_000)), speech()),
    Case("normalize", lambda: Normalize(pcm(16_000)), speech()),
    Case("normalize whole", lambda: Normalize(pcm(16_000), scope="whole"), speech()),
    Case("normalize off", lambda: Normalize(pcm(16_000), scope="off"), speech()),
    Case("normalize 11k", lambda: Normalize(pcm(11_025)), speech(1.0, 11_025)),
    Case("segment", lambda: Segment(pcm(16_000), silence_ms=100, max_s=0.5), speech(2.0), fixed_length=False),
    Case("segment 11k", lambda: Segment(pcm(11_025)), speech(2.0, 11_025), fixed_length=False),
    Case("resample 16k", lambda: Resample(pcm(16_000)), speech()),
    Case("resample 48k", lambda: Resample(pcm(48_000)), speech(0.5, 48_000), resume_atol=REPLAY_ATOL),
    Case("resample 44.1k", lambda: Resample(pcm(44_100)), speech(0.5, 44_100), resume_atol=REPLAY_ATOL),
    Case("resample 8k", lambda: Resample(pcm(8_000)), speech(0.5, 8_000), resume_atol=REPLAY_ATOL),
]


@pytest.mark.parametrize("case", STAGES, ids=lambda case: case.name)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_law(law, case, data):
    law(case, data.draw)
