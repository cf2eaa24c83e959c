"""Encoder, adapter, decoder and text: what they are built from, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels import open_backend
from stages import Packet, Port, Span
from stages.voxtral.adapter import Adapter
from stages.voxtral.encoder import LONGEST, Encoder
from stages.voxtral.names import open_checkpoint
from tests.compare import assert_close
from tests.tiny import TINY, tiny_arrays, tiny_checkpoint

ATOL_HEADS = 2e-5  # f32 sums of at most 128 terms in another order, through two layers and a norm
MEL = Port("mel", 16_000, 160, 128)
OPS = open_backend("portable")


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
