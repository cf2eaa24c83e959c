"""The model's stages keep the seven laws too, on a small random twin with windows far shorter than the
streams.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import Backend, Ring, open_backend
from stages import Port
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder, DecoderState
from stages.voxtral.encoder import Encoder, EncoderState
from stages.voxtral.names import Checkpoint, open_checkpoint
from stages.voxtral.text import Detokenizer
from tests.fingerprint import changes, fingerprint
from tests.laws import LAWS, Case, Draw, Play, assert_agree
from tests.stages.tape import Tape
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


def encoder_lane(ops: Backend, state: EncoderState, lane: int) -> list[np.ndarray]:
    return of_lane(ops, lane, [*state.tails, *of_rings(state.rings)])


def decoder_lane(ops: Backend, state: DecoderState, lane: int) -> list[np.ndarray]:
    return of_lane(ops, lane, [state.token, state.run, *of_rings(state.rings)])


def of_rings(rings: tuple[Ring, ...]) -> list[Any]:
    parts = [(ring.k, ring.v, ring.count, ring.k_scale, ring.v_scale) for ring in rings]
    return [part for ring in parts for part in ring if part is not None]


def of_lane(ops: Backend, lane: int, parts: list[Any]) -> list[np.ndarray]:
    return [ops.fetch(part[lane : lane + 1]).wait() for part in parts]


def cases(
    ops: Backend, name: str = "", *, tokens: int = 60, encoder_atol: float = ENCODER_ATOL,
    adapter_atol: float = ADAPTER_ATOL,
) -> list[Case]:  # fmt: skip
    """The device stages on `ops`, which hear at most so many tokens."""
    make = (
        lambda: Encoder(MEL, checkpoint(), ops),
        lambda: Adapter(FRAMES, checkpoint(), ops),
        lambda: Decoder(JOINED, checkpoint(), ops, delay_ms=80, blank_patience=3),
    )
    mel, frames = features(8 * tokens, 128, quiet=-0.625), features(4 * tokens, TINY.encoder.dim)
    joined = features(tokens, TINY.decoder.dim)
    lane_of = partial(encoder_lane, ops), partial(decoder_lane, ops)
    device: dict[str, Any] = {"put": ops.upload, "get": lambda tensor: ops.fetch(tensor).wait()}
    return [
        Case(f"encoder{name}", make[0], mel, encoder_atol, lane_of=lane_of[0], **device),
        Case(f"adapter{name}", make[1], frames, adapter_atol, lane_of=lambda state, lane: (), **device),
        Case(f"decoder{name}", make[2], joined, lane_of=lane_of[1], **device),
    ]


TEXT = Case("text", lambda: Detokenizer(TOKENS, checkpoint()), tokens(40, TINY.decoder.vocab).map(np.ravel))
DEVICE = [*cases(open_backend("portable")), *cases(Tape(), ", recorded")]


@pytest.mark.parametrize("case", [*DEVICE, TEXT], ids=lambda case: case.name)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_law(law, case, data):
    law(case, data.draw)


@pytest.mark.parametrize("case", DEVICE, ids=lambda case: case.name)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_neighbour_changes_no_bit_while_the_bucket_stays(case, data):
    bits_stay(case, data.draw)


def bits_stay(case: Case, draw: Draw) -> None:
    """Others begin, speak, pause and end; a lane in the same bucket says and keeps the same bits."""
    quantum, stream, most = case.stage.quantum, draw(case.inputs), 5
    watched, chance = draw(st.integers(2, most - 1)), np.random.default_rng(draw(st.integers(0, 2**16)))
    busy, quiet = Play(case, most), Play(case, most)
    at = 0
    while len(row := stream[at : at + quantum * int(chance.choice([1, 1, 1, 3]))]) >= quantum:
        row = row[: len(row) // quantum * quantum]
        at += len(row)
        others = [k for k in range(watched) if chance.random() < 0.6]
        noise = {k: chance.standard_normal(row.shape).astype(row.dtype) for k in others}
        busy.step({**noise, watched: row})
        quiet.step({watched: row})
        if chance.random() < 0.2:
            busy.flush(int(chance.integers(watched)))
        here, there = (fingerprint(case.lane_of(play.state, watched)) for play in (busy, quiet))
        assert not (diff := changes(here, there)), f"{case.name}: lane {watched} has other bits in {diff}"
    assert_agree(busy.flush(watched), quiet.flush(watched), 0.0, f"{case.name}, lane {watched} beside others")
