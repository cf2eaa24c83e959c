"""The model's stages keep the seven laws too, on a small random twin with windows far shorter than the
streams.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import Backend, open_backend
from stages import Port
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder, DecoderState
from stages.voxtral.encoder import Encoder, EncoderState
from stages.voxtral.names import Checkpoint, open_checkpoint
from stages.voxtral.text import Detokenizer
from tests.laws import LAWS, Case
from tests.strategies import features, tokens
from tests.tiny import TINY, tiny_checkpoint

# f32 sums of at most 160 terms in another order, through two layers and a norm, on values of about 1
ENCODER_ATOL = 2e-5
ADAPTER_ATOL = 1e-5

MEL = Port("mel", 16_000, 160, 128)
FRAMES = Port("frames", 16_000, 320, TINY.encoder.dim, "device")
JOINED = Port("frames", 16_000, 1280, TINY.decoder.dim, "device")
TOKENS = Port("tokens", 16_000, 1280, 1, "device", delay=6 * 1280)


@cache
def checkpoint() -> Checkpoint:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return open_checkpoint(tiny_checkpoint(folder))


@cache
def backend() -> Backend:
    return open_backend("portable")


def encoder_lane(state: EncoderState, lane: int):
    return [tail[lane] for tail in state.tails], rings(state, lane)


def decoder_lane(state: DecoderState, lane: int):
    return state.token[lane], state.run[lane], rings(state, lane)


def rings(state, lane: int):
    return [(ring.k[lane], ring.v[lane], ring.count[lane]) for ring in state.rings]


STAGES = [
    Case(
        "encoder", lambda: Encoder(MEL, checkpoint(), backend()), features(8 * 40, 128, quiet=-0.625),
        atol=ENCODER_ATOL, lane_of=encoder_lane,
    ),
    Case(
        "adapter", lambda: Adapter(FRAMES, checkpoint(), backend()), features(4 * 12, TINY.encoder.dim),
        atol=ADAPTER_ATOL, lane_of=lambda state, lane: (),
    ),
    Case(
        "decoder", lambda: Decoder(JOINED, checkpoint(), backend(), delay_ms=80, blank_patience=3),
        features(60, TINY.decoder.dim), lane_of=decoder_lane,
    ),
    Case("text", lambda: Detokenizer(TOKENS, checkpoint()), tokens(40, TINY.decoder.vocab).map(np.ravel)),
]  # fmt: skip


@pytest.mark.parametrize("case", STAGES, ids=lambda case: case.name)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_law(law, case, data):
    law(case, data.draw)
