"""Encoder, adapter, decoder and text: what they are built from, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels import open_backend
from stages import ConfigError, Packet, Port, Span
from stages.voxtral.adapter import Adapter
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import LONGEST, Encoder
from stages.voxtral.names import Checkpoint, open_checkpoint
from tests.compare import assert_close
from tests.tiny import TINY, tiny_arrays, tiny_checkpoint

ATOL_HEADS = 2e-5  # f32 sums of at most 128 terms in another order, through two layers and a norm
MEL = Port("mel", 16_000, 160, 128)
FRAMES = Port("frames", 16_000, 320, TINY.encoder.dim, "device")
JOINED = Port("frames", 16_000, 1280, TINY.decoder.dim, "device")
OPS = open_backend("portable")
STEPPED_MS = [*range(80, 1201, 80), 2400]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def encoded(folder: Path, frames: int = 40) -> np.ndarray:
    """Encoder frames [T, C] of some mel, by the checkpoint in `folder`."""
    encoder = Encoder(MEL, open_checkpoint(folder), OPS)
    mel = np.random.default_rng(0).standard_normal((1, 2 * frames, 128)).astype(np.float32)
    (out,) = encoder.step(encoder.open(), Packet(mel, (Span(0, 320 * frames),)))
    return out.data[0]


def test_encoder_heads_may_share_keys(tmp_path: Path) -> None:
    """Two key heads for four query heads, and the same keys written out for each."""
    shared = replace(TINY, encoder=replace(TINY.encoder, kv_heads=2))
    arrays = tiny_arrays(shared)
    width = TINY.encoder.head_dim
    spread = {
        name: np.repeat(a.reshape(2, width, *a.shape[1:]), 2, axis=0).reshape(-1, *a.shape[1:])
        if name.startswith("encoder.layers.") and name.split(".")[-1] in ("wk", "wv", "wv_bias")
        else a
        for name, a in arrays.items()
    }
    ours = encoded(tiny_checkpoint(tmp_path / "shared", config=shared, arrays=arrays))
    expected = encoded(tiny_checkpoint(tmp_path / "spread", arrays=spread))
    assert_close(ours, expected, rtol=0, atol=ATOL_HEADS, what="frames")


@pytest.mark.parametrize("downsample", [1, 3, 7, 64])
def test_a_long_step_is_cut_into_whole_tokens_however_many_frames_they_have(
    tmp_path: Path, downsample: int
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, config=replace(TINY, downsample=downsample)))
    encoder = Encoder(MEL, checkpoint, OPS)
    adapter = Adapter(encoder.gives, checkpoint, OPS)
    state, joined = encoder.open(), adapter.open()
    tokens = 3 * LONGEST // downsample + 1
    mel = np.zeros((1, tokens * encoder.quantum, 128), np.float32)
    parts = encoder.step(state, Packet(mel, (Span(0, 160 * mel.shape[1]),)))
    assert len(parts) > 1
    answers = [answer for part in parts for answer in adapter.step(joined, part)]
    assert sum(answer.items for answer in answers) == tokens


@pytest.mark.parametrize("downsample", [4, 64])
def test_the_passes_of_a_long_step_are_kept_apart(tmp_path: Path, downsample: int) -> None:
    """At 64 frames a token, a pass is a token: as long as the step that is recorded, and several in one."""
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, config=replace(TINY, downsample=downsample)))
    encoder = Encoder(MEL, checkpoint, OPS)
    mel = np.random.default_rng(0).standard_normal((1, 3 * encoder.longest + 8, 128)).astype(np.float32)
    mel = mel[:, : mel.shape[1] // encoder.quantum * encoder.quantum]
    parts = encoder.step(encoder.open(), Packet(mel, (Span(0, 160 * mel.shape[1]),)))
    state, live = encoder.open(), []
    for at in range(0, mel.shape[1], encoder.quantum):
        span = Span(160 * at, 160 * (at + encoder.quantum))
        (out,) = encoder.step(state, Packet(mel[:, at : at + encoder.quantum], (span,)))
        live.append(out.data.copy())
    together = np.concatenate([part.data for part in parts], axis=1)
    assert_close(together, np.concatenate(live, axis=1), rtol=0, atol=ATOL_HEADS, what="frames")


@pytest.mark.parametrize("stage", ["encoder", "adapter", "decoder"])
def test_lanes_above_the_highest_at_work_are_not_stepped(tiny: Checkpoint, stage: str) -> None:
    made = {"encoder": (Encoder, MEL), "adapter": (Adapter, FRAMES), "decoder": (Decoder, JOINED)}
    kind, port = made[stage]
    built = kind(port, tiny, OPS)
    state = built.open(8)
    data = np.ones((8, built.quantum, port.width), np.float32)
    spans = (None, Span(0, built.quantum * port.hop), *[None] * 6)
    for _ in range(3):
        (out,) = built.step(state, Packet(data, spans))
        worked = state.logits if stage == "decoder" else out.data
        assert len(out.data) == 8
        assert worked[1].any() and not worked[2:].any()


@pytest.mark.parametrize(
    ("stage", "upstream", "takes"),
    [
        (Encoder, replace(MEL, width=80), "voxtral.encoder takes mel, rate 16000, hop 160, width 128"),
        (Encoder, replace(MEL, rate=24_000), "voxtral.encoder takes mel, rate 16000"),
        (Encoder, FRAMES, "voxtral.encoder takes mel"),
        (Adapter, JOINED, f"voxtral.adapter takes frames, rate 16000, hop 320, width {TINY.encoder.dim}"),
        (Adapter, replace(FRAMES, width=1280), "voxtral.adapter takes frames"),
        (Decoder, FRAMES, f"voxtral.decoder takes frames, rate 16000, hop 1280, width {TINY.decoder.dim}"),
        (Decoder, replace(JOINED, width=3072), "voxtral.decoder takes frames"),
    ],
)
def test_a_plug_that_is_not_the_checkpoint_s_is_refused(
    tiny: Checkpoint, stage: type, upstream: Port, takes: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{takes}.*, but was given {upstream.kind} "):
        stage(upstream, tiny, OPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": -5}, "context is -5, expected 0 to"),
        ({"blank_patience": -1}, "blank_patience is -1, expected 0 to"),
        ({"blank_slope": -0.5}, "blank_slope is -0.5, expected 0.0 to"),
        ({"blank_limit": float("nan")}, "blank_limit is nan, expected 0.0 to"),
    ],
)
def test_decoder_options_that_make_no_sense_are_refused(
    tiny: Checkpoint, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^voxtral.decoder: {message}"):
        Decoder(JOINED, tiny, OPS, **options)


@pytest.mark.parametrize(("context", "kept"), [(0, 20), (7, 7), (1, 1), (10**6, 20)])
def test_context_shortens_the_window_and_never_lengthens_it(
    tiny: Checkpoint, context: int, kept: int
) -> None:
    decoder = Decoder(JOINED, tiny, OPS, context=context)
    assert [ring.capacity for ring in decoder.open().rings] == [kept] * TINY.decoder.layers


@pytest.mark.parametrize("delay_ms", STEPPED_MS)
def test_the_prompt_is_mistral_common_s(tiny: Checkpoint, official_audio, delay_ms: int) -> None:
    ours = Decoder(JOINED, tiny, OPS, delay_ms=delay_ms).prompt
    assert ours.tolist() == [1, *official_audio.encode_streaming_tokens(float(delay_ms))]


def test_prompt_and_port_follow_the_delay_and_the_vocabulary_s_padding(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    tekken = json.loads((folder / "tekken.json").read_text())
    tekken["audio"]["streaming_n_left_pad_tokens"] = 5
    (folder / "tekken.json").write_text(json.dumps(tekken))
    decoder = Decoder(JOINED, open_checkpoint(folder), OPS, delay_ms=160)
    assert decoder.prompt.tolist() == [1] + [32] * 7
    assert decoder.gives.delay == 2 * 1280


def test_the_prompt_is_said_back_before_the_first_choice(tiny: Checkpoint) -> None:
    decoder = Decoder(JOINED, tiny, OPS, delay_ms=80)
    frames = np.random.default_rng(0).standard_normal((1, 40, TINY.decoder.dim)).astype(np.float32)
    packets = decoder.step(decoder.open(), Packet(frames, (Span(0, 40 * 1280),)))
    assert [int(p.data[0, 0]) for p in packets][:33] == [32] * 33
    assert [p.spans[0] for p in packets] == [Span(n * 1280, (n + 1) * 1280) for n in range(40)]
