"""The official implementations, set up once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def official_audio():
    """mistral-common's padding and prompt, with the values of the real model's tekken.json."""
    audio = pytest.importorskip("mistral_common.tokens.tokenizers.audio")
    config = audio.AudioConfig(
        sampling_rate=16_000, frame_rate=12.5, transcription_format=audio.TranscriptionFormat.STREAMING,
        encoding_config=audio.AudioSpectrogramConfig(num_mel_bins=128, hop_length=160, window_size=400),
        transcription_delay_ms=480.0, streaming_look_ahead_ms=2.5, streaming_look_back_ms=52.5,
        streaming_n_left_pad_tokens=32,
    )  # fmt: skip
    return audio.AudioEncoder(config, audio.SpecialAudioIDs(24, 25, 32, None, None))
