"""Shapes and rates of a Voxtral Realtime checkpoint, read from its own JSON, and the few facts JSON omits.

    samples 16 kHz --160--> mel 100 Hz --conv /1, conv /2--> positions 50 Hz --stack 4--> tokens 12.5 Hz

Read from Mistral's params.json or from transformers' config.json; `Config` is the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from stages.errors import ConfigError
from stages.jsonfile import Fields, parse_json, read_json
from stages.weights import Weights, open_weights

# Facts of the architecture that neither JSON states.
CONV_KERNEL = 3  # taps of both stem convolutions: transformers, modular_voxtral_realtime.py
CONV_STRIDES = (1, 2)  # of the two, in order: the same file, and whisper_causal.py of vLLM
ADA_DIM = 32  # bottleneck of the delay conditioning: params.json states it, transformers has it hard-coded
BOS = 1  # token ids: mistral-common, tekken.json's special_tokens
STREAMING_PAD = 32  # nothing to say in this frame
STREAMING_WORD = 33  # a word starts; its text follows
LEFT_PAD_TOKENS = 32  # tekken.json's audio block where there is one; this is the official model's value
RIGHT_PAD_TOKENS = 11  # beyond the delay: 1, and 10 for the longest word; mistral-common, n_right_pad_tokens
TOKEN_MS = 80
LONGEST_STEPPED_DELAY_MS = 1200  # model card: multiples of 80 ms up to here ...
LONG_DELAY_MS = 2400  # ... and this one

# Whisper's front-end, which transformers' config.json leaves to its feature extractor.
_RATE, _HOP, _WINDOW, _LOG_MEL_CEILING = 16_000, 160, 400, 1.5

PARAMS_KEY = "headrace.params"  # weights metadata: the text of params.json, written by our quantiser
_FILE_LIMIT = 1 << 20
_MAX_WIDTH = 1 << 20
_MAX_LAYERS = 1000
_VOCAB = STREAMING_WORD + 1, 1 << 24  # the prompt is made of pads, and words begin with their marker


@dataclass(frozen=True, slots=True)
class Audio:
    """The mel front-end.

    rate : Hz; hop, window : samples
    log_mel_ceiling : the largest log10 energy reckoned with, a constant of the model
    """

    rate: int = _RATE
    mels: int = 128
    hop: int = _HOP
    window: int = _WINDOW
    log_mel_ceiling: float = _LOG_MEL_CEILING


@dataclass(frozen=True, slots=True)
class Tower:
    """What encoder and decoder have in common: a pre-norm transformer with RMS norm, RoPE and SwiGLU.

    dim : width; hidden_dim : width between w1/w3 and w2
    window : keys a query sees, itself included
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_dim: int
    window: int
    rope_theta: float
    norm_eps: float

    @property
    def q_width(self) -> int:
        """Rows of wq; not `dim` in general."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Encoder(Tower):
    """The causal Whisper-like tower at 50 Hz; wq, wv, wo and w2 have biases."""


@dataclass(frozen=True, slots=True)
class Decoder(Tower):
    """The language model at 12.5 Hz; no biases; the embedding table is also the output matrix."""

    vocab: int
    ada_dim: int


@dataclass(frozen=True, slots=True)
class Config:
    """One checkpoint. downsample : encoder positions stacked into one token."""

    audio: Audio
    encoder: Encoder
    decoder: Decoder
    downsample: int

    @property
    def position_hop(self) -> int:
        """Samples per encoder position: 320."""
        return self.audio.hop * CONV_STRIDES[0] * CONV_STRIDES[1]

    @property
    def token_hop(self) -> int:
        """Samples per token: 1280."""
        return self.position_hop * self.downsample

    @property
    def mels_per_token(self) -> int:
        """8."""
        return self.token_hop // self.audio.hop

    @property
    def stack_width(self) -> int:
        """Values the adapter takes per token: 5120."""
        return self.encoder.dim * self.downsample


OFFICIAL = Config(  # Voxtral Mini 4B Realtime 2602, params.json
    Audio(),
    Encoder(1280, 32, 32, 32, 64, 5120, 750, 1e6, 1e-5),
    Decoder(3072, 26, 32, 8, 128, 9216, 8192, 1e6, 1e-5, 131_072, ADA_DIM),
    downsample=4,
)


def delay_tokens(delay_ms: float) -> int:
    """Tokens that text lags behind the audio: 6 for 480 ms.

    Raises
    ------
    ConfigError   unless `delay_ms` is one of 80, 160 ... 1200, or 2400: the delays the model was trained for
    """
    legal = [*range(TOKEN_MS, LONGEST_STEPPED_DELAY_MS + 1, TOKEN_MS), LONG_DELAY_MS]
    if delay_ms in legal:
        return int(delay_ms) // TOKEN_MS
    below = max((d for d in legal if d < delay_ms), default=None)
    above = min((d for d in legal if d > delay_ms), default=None)
    near = " or ".join(f"{d} ms" for d in (below, above) if d is not None)
    raise ConfigError(
        f"delay should be 80 to 1200 ms by 80, or 2400, found {delay_ms:g}; nearest {near or '480 ms'}"
    )


def prefix_tokens(delay: int, left_pad: int = LEFT_PAD_TOKENS) -> int:
    """Length of the prompt, BOS and pads, for a delay in tokens: 39 for 6."""
    return 1 + left_pad + delay


def right_pad_tokens(delay: int) -> int:
    """Tokens of silence that bring out the last word, for a delay in tokens: 17 for 6."""
    return RIGHT_PAD_TOKENS + delay


def load_config(path: str | Path) -> Config:
    """The configuration of the checkpoint at `path`: a folder, weights, params.json or config.json.

    Looked for in this order: params.json, then config.json, in the folder; the metadata of the weights file;
    and for a file with the official embedding table, the official constants.

    Raises
    ------
    ConfigError    naming the file and the field
    WeightsError   if the weights had to be opened and could not be
    """
    path = Path(path)
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        return _read(path)
    found = _beside(path)
    return found if found is not None else config_of(open_weights(path))


def config_of(weights: Weights) -> Config:
    """The configuration of opened weights; see `load_config`."""
    found = _beside(weights.source)
    if found is not None:
        return found
    if isinstance(text := weights.metadata.get(PARAMS_KEY), str):
        return parse_params(text.encode(), f"{weights.source}: metadata {PARAMS_KEY}")
    largest = max(weights.entries.values(), key=lambda entry: entry.nbytes, default=None)
    if largest is not None and largest.shape == (OFFICIAL.decoder.vocab, OFFICIAL.decoder.dim):
        return OFFICIAL
    said = weights.metadata.get("general.architecture", "unknown")
    raise ConfigError(
        f"{weights.source}: expected params.json or config.json beside it, found neither; copy it there, or "
        f"is this another model's (architecture {str(said)[:40]!r})?"
    )


def parse_params(text: bytes, where: str) -> Config:
    """A `Config` from the text of Mistral's params.json; `where` opens every complaint."""
    return _from_params(Fields(parse_json(text, where, ConfigError), where, ConfigError))


def to_params(config: Config) -> dict[str, Any]:
    """Mistral's params.json for `config`, as an object; `parse_params` reads it back."""
    encoder, decoder, audio = config.encoder, config.decoder, config.audio
    return {
        **{theirs: getattr(decoder, ours) for ours, theirs in _MISTRAL.items()},
        "use_biases": False,
        "causal": True,
        "rope_theta": decoder.rope_theta,
        "vocab_size": decoder.vocab,
        "tied_embeddings": True,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": decoder.ada_dim,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": {
                    "audio_encoding_args": {
                        "sampling_rate": audio.rate,
                        "frame_rate": audio.rate / config.token_hop,
                        "num_mel_bins": audio.mels,
                        "hop_length": audio.hop,
                        "window_size": audio.window,
                        "chunk_length_s": None,
                        "global_log_mel_max": audio.log_mel_ceiling,
                        "transcription_format": "streaming",
                    },
                    **{theirs: getattr(encoder, ours) for ours, theirs in _MISTRAL.items()},
                    "use_biases": True,
                    "rope_theta": encoder.rope_theta,
                    "causal": True,
                    "pos_embed": "rope",
                    "max_source_positions": None,
                    "ffn_type": "swiglu",
                    "norm_type": "rms_norm",
                },
                "downsample_args": {"downsample_factor": config.downsample},
            }
        },
    }


def _beside(path: Path) -> Config | None:
    folder = path if path.is_dir() else path.parent
    return next((_read(folder / n) for n in ("params.json", "config.json") if (folder / n).is_file()), None)


def _read(path: Path) -> Config:
    fields = Fields(read_json(path, _FILE_LIMIT, ConfigError), str(path), ConfigError)
    return _from_transformers(fields) if "model_type" in fields.data else _from_params(fields)


def _from_params(top: Fields) -> Config:
    """Mistral's params.json. Source: vLLM, transformers_utils/configs/mistral.py."""
    if "multimodal" not in top.data:
        raise ConfigError(
            f"{top.where}: 'multimodal' is missing; is this the params.json of a Voxtral Realtime model?"
        )
    whisper = top.child("multimodal").child("whisper_model_args")
    encoder = whisper.child("encoder_args")
    audio = encoder.child("audio_encoding_args")
    for fields, name, expected in (
        (top, "causal", True), (top, "use_biases", False), (top, "tied_embeddings", True),
        (top, "ada_rms_norm_t_cond", True), (encoder, "causal", True), (encoder, "use_biases", True),
        (encoder, "pos_embed", "rope"), (encoder, "ffn_type", "swiglu"), (encoder, "norm_type", "rms_norm"),
    ):  # fmt: skip
        fields.only(name, expected)
    return _config(
        Audio(
            audio.integer("sampling_rate", 1000, 1_000_000),
            audio.integer("num_mel_bins", 1, 4096),
            audio.integer("hop_length", 1, 1 << 16),
            audio.integer("window_size", 1, 1 << 16),
            audio.number("global_log_mel_max", -100, 100),
        ),
        Encoder(**_tower(encoder, _MISTRAL)),
        Decoder(
            **_tower(top, _MISTRAL),
            vocab=top.integer("vocab_size", *_VOCAB),
            ada_dim=top.integer("ada_rms_norm_t_cond_dim", 1, _MAX_WIDTH),
        ),
        whisper.child("downsample_args").integer("downsample_factor", 1, 64),
        whisper.where,
        audio.number("frame_rate", 1e-3, 1e6),
    )


def _from_transformers(top: Fields) -> Config:
    """transformers' config.json. Source: configuration_voxtral_realtime.py."""
    top.only("model_type", "voxtral_realtime")
    text, tower = top.child("text_config"), top.child("audio_config")
    top.only("projector_hidden_act", "gelu")
    for fields in (text, tower):
        fields.only("hidden_act", "silu")
    text.only("tie_word_embeddings", True)
    tower.only("activation_function", "gelu")
    return _config(
        Audio(mels=tower.integer("num_mel_bins", 1, 4096)),
        Encoder(**_tower(tower, _TRANSFORMERS)),
        Decoder(**_tower(text, _TRANSFORMERS), vocab=text.integer("vocab_size", *_VOCAB), ada_dim=ADA_DIM),
        top.integer("downsample_factor", 1, 64),
        top.where,
        _RATE / _HOP / top.number("audio_length_per_tok", 1, 4096),
    )


_MISTRAL = {
    "dim": "dim", "layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads", "head_dim": "head_dim",
    "hidden_dim": "hidden_dim", "window": "sliding_window", "norm_eps": "norm_eps",
}  # fmt: skip
_TRANSFORMERS = {
    "dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "hidden_dim": "intermediate_size",
    "window": "sliding_window", "norm_eps": "rms_norm_eps",
}  # fmt: skip


def _tower(fields: Fields, name: dict[str, str]) -> dict[str, Any]:
    """The fields of `Tower`, under the names of one or the other JSON."""
    heads = fields.integer(name["heads"], 1, 1 << 16)
    kv_heads = fields.integer(name["kv_heads"], 1, 1 << 16, default=heads)
    if heads % kv_heads:
        fields.wrong(name["kv_heads"], f"a divisor of the {heads} query heads", kv_heads)
    head_dim = fields.integer(name["head_dim"], 2, 1 << 16)
    if head_dim % 2:
        fields.wrong(name["head_dim"], "even, as RoPE turns pairs", head_dim)
    rope = fields
    if "rope_parameters" in fields.data:
        rope = fields.child("rope_parameters")
        rope.only("rope_type", "default")
    return {
        "dim": fields.integer(name["dim"], 1, _MAX_WIDTH),
        "layers": fields.integer(name["layers"], 1, _MAX_LAYERS),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_dim": fields.integer(name["hidden_dim"], 1, _MAX_WIDTH),
        "window": fields.integer(name["window"], 1, _MAX_WIDTH),
        "rope_theta": rope.number("rope_theta", 1, 1e12),
        "norm_eps": fields.number(name["norm_eps"], 0, 1),
    }


def _config(
    audio: Audio, encoder: Encoder, decoder: Decoder, downsample: int, where: str, frame_rate: float
) -> Config:
    config = Config(audio, encoder, decoder, downsample)
    if not isclose(frame_rate * config.token_hop, audio.rate):
        raise ConfigError(
            f"{where}: {audio.rate} Hz at hop {audio.hop}, strides {CONV_STRIDES} and downsample_factor "
            f"{downsample} give {audio.rate / config.token_hop:g} tokens a second, but it says {frame_rate:g}"
        )
    if decoder.dim % 2:
        raise ConfigError(
            f"{where}: the decoder's width should be even, half cosines and half sines, found {decoder.dim}"
        )
    return config
