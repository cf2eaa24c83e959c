"""The tensor table of Voxtral Realtime: our names, their shapes, and the names in two kinds of files.

Ours read like the code that uses them: `encoder.layers.0.wq_bias`, `decoder.embed`. Mistral's own names also
serve GGUF. transformers stores the rows of q and k so that RoPE turns halves of a head; ours turns pairs, so
`raw` and `array` put those rows back in Mistral's order, on stored bytes of any kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from kernels.quant import unpack
from stages.errors import ConfigError, WeightsError
from stages.text.tekken import Tekken, load_tekken
from stages.voxtral.config import CONV_KERNEL, LEFT_PAD_TOKENS, Config, Tower, config_of
from stages.weights import Weights, open_weights
from stages.weights.index import quoted

MISTRAL, TRANSFORMERS = "mistral", "transformers"
NAMINGS = (MISTRAL, TRANSFORMERS)

_E = "mm_streams_embeddings.embedding_module."
_W = _E + "whisper_encoder."
_LEFT_PADS = "streaming_n_left_pad_tokens"  # tekken.json, audio block
_MAX_LEFT_PADS = 1000
_NAMED = 4  # tensors named in one complaint

# ours -> (Mistral's, transformers') inside one layer
_LAYER = {
    "attention_norm": ("attention_norm.weight", "self_attn_layer_norm.weight"),
    "wq": ("attention.wq.weight", "self_attn.q_proj.weight"),
    "wq_bias": ("attention.wq.bias", "self_attn.q_proj.bias"),
    "wk": ("attention.wk.weight", "self_attn.k_proj.weight"),
    "wv": ("attention.wv.weight", "self_attn.v_proj.weight"),
    "wv_bias": ("attention.wv.bias", "self_attn.v_proj.bias"),
    "wo": ("attention.wo.weight", "self_attn.o_proj.weight"),
    "wo_bias": ("attention.wo.bias", "self_attn.o_proj.bias"),
    "ffn_norm": ("ffn_norm.weight", "final_layer_norm.weight"),
    "w1": ("feed_forward.w1.weight", "mlp.gate_proj.weight"),
    "w2": ("feed_forward.w2.weight", "mlp.down_proj.weight"),
    "w2_bias": ("feed_forward.w2.bias", "mlp.down_proj.bias"),
    "w3": ("feed_forward.w3.weight", "mlp.up_proj.weight"),
}
_DECODER_LAYER = {name: pair for name, pair in _LAYER.items() if not name.endswith("_bias")} | {
    "attention_norm": ("attention_norm.weight", "input_layernorm.weight"),
    "ffn_norm": ("ffn_norm.weight", "post_attention_layernorm.weight"),
    "ada0": ("ada_rms_norm_t_cond.0.weight", "ada_rms_norm.linear1.weight"),
    "ada2": ("ada_rms_norm_t_cond.2.weight", "ada_rms_norm.linear2.weight"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor: our name, its shape, and its name in files.

    heads : for q and k, how many heads its rows form, each of which transformers permutes; else 0
    """

    name: str
    shape: tuple[int, ...]
    mistral: str
    transformers: str
    heads: int = 0

    @property
    def linear(self) -> bool:
        """Whether it is a matrix that `linear` or `embed` reads, and so may be quantised."""
        return len(self.shape) == 2

    def stored_as(self, naming: str) -> str:
        return self.mistral if naming == MISTRAL else self.transformers


def tensor_table(config: Config) -> dict[str, Row]:
    """Every tensor of a checkpoint by our name; 711 of them for the official model."""
    rows = [*_encoder(config), *_adapter(config), *_decoder(config)]
    return {row.name: row for row in rows}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A configuration and weights that have been found to fit it. `open_checkpoint` makes one.

    naming : whose names the file uses, MISTRAL or TRANSFORMERS
    rows : the tensor table, by our names
    stored : our name -> the name in the file
    """

    config: Config
    weights: Weights
    naming: str
    rows: Mapping[str, Row]
    stored: Mapping[str, str]
    _read: dict[Path, Tekken] = field(default_factory=dict, repr=False, compare=False)  # once: it is 15 MB

    def raw(self, name: str) -> tuple[np.ndarray, str, tuple[int, ...]]:
        """Stored bytes (uint8), kind and shape of what we call `name`, ready for `backend.adopt(*...)`."""
        row, entry = self.rows[name], self.weights.entries[self.stored[name]]
        data = self.weights.raw(entry.name)
        if row.heads and self.naming == TRANSFORMERS:
            data = _pairs(data, row.heads, row.shape[0])
        return data, entry.kind, row.shape

    def array(self, name: str) -> np.ndarray:
        """The tensor we call `name` as float32: for norms, biases and convolutions."""
        return unpack(*self.raw(name))

    @property
    def tekken(self) -> Path:
        """Where the vocabulary is: tekken.json in the folder of the weights (perhaps absent)."""
        source = self.weights.source
        return (source if source.is_dir() else source.parent) / "tekken.json"

    def vocabulary(self) -> Tekken:
        """What tekken.json says, read the first time it is asked for.

        Raises
        ------
        FileAbsent, FormatError   as `load_tekken`
        """
        if self.tekken not in self._read:
            self._read[self.tekken] = load_tekken(self.tekken)
        return self._read[self.tekken]

    @property
    def left_pad_tokens(self) -> int:
        """Tokens of silence before the audio: what tekken.json says, or the official 32."""
        stated = self.vocabulary().audio.get(_LEFT_PADS) if self.tekken.is_file() else None
        if stated is None:
            return LEFT_PAD_TOKENS
        if type(stated) is not int or not 0 <= stated <= _MAX_LEFT_PADS:
            raise ConfigError(
                f"{self.tekken}: {_LEFT_PADS} should be 0 to {_MAX_LEFT_PADS}, found {stated!r}"
            )
        return stated


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open weights and configuration at `path` and check the whole tensor table, before any tensor is read.

    Raises
    ------
    WeightsError   one error for all that is missing, extra or misshapen
    ConfigError    if the configuration is absent or absurd
    """
    weights = open_weights(path)
    config = config_of(weights)
    rows = tensor_table(config)
    naming, stored = _recognise(weights, rows)
    _check(weights, rows, stored, naming)
    return Checkpoint(config, weights, naming, MappingProxyType(rows), MappingProxyType(stored))


def _encoder(config: Config) -> Iterator[Row]:
    tower, hf = config.encoder, "audio_tower."
    inputs = (config.audio.mels, tower.dim)
    for n, width in enumerate(inputs):
        ours, theirs, saved = f"encoder.conv{n + 1}", f"{_W}conv_layers.{n}.conv", f"{hf}embedder.conv{n + 1}"
        yield Row(f"{ours}.weight", (tower.dim, width, CONV_KERNEL), f"{theirs}.weight", f"{saved}.weight")
        yield Row(f"{ours}.bias", (tower.dim,), f"{theirs}.bias", f"{saved}.bias")
    yield from _layers(tower, _LAYER, "encoder.layers.", f"{_W}transformer.layers.", f"{hf}layers.", {})
    yield Row("encoder.norm", (tower.dim,), f"{_W}transformer.norm.weight", f"{hf}norm.weight")


def _adapter(config: Config) -> Iterator[Row]:
    out, ours, hf = config.decoder.dim, f"{_E}audio_language_projection.", "multi_modal_projector.linear_"
    yield Row("adapter.0", (out, config.stack_width), f"{ours}0.weight", f"{hf}1.weight")
    yield Row("adapter.2", (out, out), f"{ours}2.weight", f"{hf}2.weight")


def _decoder(config: Config) -> Iterator[Row]:
    tower, hf = config.decoder, "language_model.model."
    yield Row(
        "decoder.embed", (tower.vocab, tower.dim), f"{_E}tok_embeddings.weight", f"{hf}embed_tokens.weight"
    )
    ada = {"ada0": (tower.ada_dim, tower.dim), "ada2": (tower.dim, tower.ada_dim)}
    yield from _layers(tower, _DECODER_LAYER, "decoder.layers.", "layers.", f"{hf}layers.", ada)
    yield Row("decoder.norm", (tower.dim,), "norm.weight", f"{hf}norm.weight")


def _layers(
    tower: Tower,
    names: Mapping[str, tuple[str, str]],
    ours: str,
    mistral: str,
    transformers: str,
    more: Mapping[str, tuple[int, ...]],
) -> Iterator[Row]:
    dim, q, kv, ffn = tower.dim, tower.q_width, tower.kv_width, tower.hidden_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (dim,), "ffn_norm": (dim,),
        "wq": (q, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, q),
        "wq_bias": (q,), "wv_bias": (kv,), "wo_bias": (dim,),
        "w1": (ffn, dim), "w2": (dim, ffn), "w3": (ffn, dim), "w2_bias": (dim,),
        **more,
    }  # fmt: skip
    heads = {"wq": tower.heads, "wq_bias": tower.heads, "wk": tower.kv_heads}
    for n in range(tower.layers):
        for name, (theirs, saved) in names.items():
            at = (f"{ours}{n}.{name}", shapes[name], f"{mistral}{n}.{theirs}", f"{transformers}{n}.{saved}")
            yield Row(*at, heads=heads.get(name, 0))


def _pairs(data: np.ndarray, heads: int, rows: int) -> np.ndarray:
    """Rows (head, half, i) to rows (head, i, half), whatever a row's bytes mean."""
    halves = data.reshape(heads, 2, rows // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def _as_saved(name: str) -> str:
    """transformers' name in memory -> its name in files: model.language_model.x -> language_model.model.x."""
    bare = name.removeprefix("model.")
    if bare.startswith("language_model.") and not bare.startswith("language_model.model."):
        return bare.replace("language_model.", "language_model.model.", 1)
    return bare


def _recognise(weights: Weights, rows: Mapping[str, Row]) -> tuple[str, dict[str, str]]:
    """Whose names the file uses, and where it has each of our tensors."""
    mistral = {row.mistral: row.name for row in rows.values()}
    transformers = {row.transformers: row.name for row in rows.values()}
    found = {
        MISTRAL: {mistral[n]: n for n in weights.entries if n in mistral},
        TRANSFORMERS: {transformers[s]: n for n in weights.entries if (s := _as_saved(n)) in transformers},
    }
    naming = max(NAMINGS, key=lambda naming: len(found[naming]))
    if not found[naming]:
        first = list(weights.entries)[:3]
        said = weights.metadata.get("general.architecture")
        raise WeightsError(
            f"{weights.source}: this is another model's file: expected tensors such as "
            f"{rows['decoder.embed'].mistral!r}, found {', '.join(map(quoted, first)) or 'none'}"
            + (f" (architecture {said!r})" if said else "")
            + "; Voxtral Mini 4B Realtime is wanted, in Mistral's or transformers' naming"
        )
    return naming, found[naming]


def _check(weights: Weights, rows: Mapping[str, Row], stored: Mapping[str, str], naming: str) -> None:
    missing = [f"{r.stored_as(naming)!r} {list(r.shape)}" for r in rows.values() if r.name not in stored]
    known = set(stored.values())
    extra = [quoted(name) for name in weights.entries if name not in known]
    pairs = [(rows[ours], weights.entries[theirs]) for ours, theirs in stored.items()]
    wrong = [
        f"{quoted(entry.name)} should be {list(row.shape)}, is {list(entry.shape)}"
        for row, entry in pairs
        if entry.shape != row.shape
    ]
    kinds = {"missing": missing, "misshapen": wrong, "unexpected": extra}
    complaints = [_count(what, found) for what, found in kinds.items() if found]
    if complaints:
        shard = missing and not wrong
        cure = "is a shard absent?" if shard else "do params.json and weights belong together?"
        raise WeightsError(f"{weights.source}: of {len(rows)} tensors " + "; ".join(complaints) + f"; {cure}")


def _count(what: str, found: list[str]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{len(found)} {what}: {', '.join(found[:_NAMED])}{more}"
