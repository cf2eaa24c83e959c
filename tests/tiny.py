"""Random twins of the models: a few layers, every peculiarity of the real shapes, made in a moment.

Norms are random around 1, biases are not zero, windows are shorter than the tests' streams and query heads
share key heads, so that a mistake in any of them shows. Embeddings are small beside the layers' output: the
output matrix being tied, the model would else repeat the token it was fed.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np

from kernels.quant import pack
from pipeline.tools.quantize import Piece, kind_for, write_weights
from pipeline.tools.weights import made_up_tekken
from stages.voxtral.config import Audio, Config, Decoder, Encoder, to_params
from stages.voxtral.names import TRANSFORMERS, Row, tensor_table

TINY = Config(
    Audio(),
    Encoder(
        dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, hidden_dim=128, window=10,
        rope_theta=1e6, norm_eps=1e-5,
    ),
    Decoder(
        dim=96, layers=2, heads=4, kv_heads=2, head_dim=24, hidden_dim=160, window=20,
        rope_theta=1e6, norm_eps=1e-5, vocab=512, ada_dim=32,
    ),
    downsample=4,
)  # fmt: skip
SPECIALS = 64
EMBEDDING_SCALE = 0.25


def tiny_checkpoint(
    folder: Path, naming: str = "mistral", kind: str = "f32", seed: int = 0, config: Config = TINY,
    arrays: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a random checkpoint into `folder` (made if need be) and return the folder.

    naming : mistral or transformers
    kind : f32, f16 or bf16 make SafeTensors; q8_0 or q4_0 a GGUF file, in Mistral's naming
    arrays : values by our names, in place of `tiny_arrays`
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = tiny_arrays(config, seed) if arrays is None else arrays
    rows = tensor_table(config)
    if naming == TRANSFORMERS:
        file, text = "model.safetensors", ("config.json", transformers_config(config))
    else:
        file = "consolidated.safetensors" if kind in ("f32", "f16", "bf16") else "tiny.gguf"
        text = "params.json", to_params(config)
    (folder / text[0]).write_text(json.dumps(text[1]))
    (folder / "tekken.json").write_text(json.dumps(made_up_tekken(config.decoder.vocab, SPECIALS)))
    pieces = [
        _piece(row, arrays[name], naming, kind_for(folder / file, row, kind)) for name, row in rows.items()
    ]
    write_weights(folder / file, pieces, config)
    return folder


def tiny_arrays(config: Config = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """The float32 values behind `tiny_checkpoint`, by our names."""
    random = np.random.default_rng(seed)
    return {name: _values(random, row) for name, row in tensor_table(config).items()}


def transformers_config(config: Config) -> dict[str, object]:
    """The config.json that transformers writes for `config`; also what its VoxtralRealtimeConfig takes."""

    def tower(of: Encoder | Decoder) -> dict[str, object]:
        return {
            "hidden_size": of.dim,
            "intermediate_size": of.hidden_dim,
            "num_hidden_layers": of.layers,
            "num_attention_heads": of.heads,
            "head_dim": of.head_dim,
            "sliding_window": of.window,
            "rms_norm_eps": of.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": of.rope_theta},
        }

    text = {"num_key_value_heads": config.decoder.kv_heads, "vocab_size": config.decoder.vocab}
    return {
        "model_type": "voxtral_realtime",
        "audio_config": tower(config.encoder) | {"num_mel_bins": config.audio.mels},
        "text_config": tower(config.decoder) | text | {"tie_word_embeddings": True},
        "downsample_factor": config.downsample,
        "audio_length_per_tok": config.mels_per_token,
        "default_num_delay_tokens": 6,
        "projector_hidden_act": "gelu",
    }


def halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (head, i, half) to (head, half, i): how transformers stores q and k."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _values(random: np.random.Generator, row: Row) -> np.ndarray:
    normal = random.standard_normal(row.shape).astype(np.float32)
    if len(row.shape) == 1:
        return np.float32(0.3) * normal + np.float32(0 if row.name.endswith("bias") else 1)
    scale = prod(row.shape[1:]) ** -0.5
    if row.name == "decoder.embed":
        scale *= EMBEDDING_SCALE
    return np.float32(scale) * normal


def _piece(row: Row, array: np.ndarray, naming: str, kind: str) -> Piece:
    if naming == TRANSFORMERS and row.heads:
        array = halves(array, row.heads)
    return Piece(row.stored_as(naming), kind, row.shape, lambda: [pack(array, kind)])
