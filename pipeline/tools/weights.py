"""What is inside a weights file, and random weights of the true shapes to measure speed and memory with."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

import graphs
from kernels.quant import BLOCK_WEIGHTS, Q4_BLOCK, pack
from pipeline.errors import GraphError
from pipeline.tools.quantize import (
    Piece,
    Progress,
    check_folder,
    check_target,
    kind_for,
    put_beside,
    write_weights,
)
from stages.errors import StageError
from stages.voxtral.config import OFFICIAL, Config, load_config
from stages.voxtral.names import Row, open_checkpoint, tensor_table
from stages.weights import Entry, Weights, open_weights

MODELS = {"voxtral-mini-4b": OFFICIAL}  # besides those in graphs/models
DESCRIBED = (".json", ".gguf", ".safetensors")  # files that can say what model they are of

_TILE_BYTES = 1 << 24  # random bytes made at a time
_TABLE = 1 << 16  # normal values that float tensors draw from: 16 random bits a weight, not a normal deviate
_NIBBLE_RMS = (((1 << 8) - 1) / 12) ** 0.5  # of whole numbers spread evenly over 16 values
_SINGLE_BYTES = 256
_MOST_SPECIALS = 1000
_NAMED_SPECIALS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    11: "<pad>",
    32: "[STREAMING_PAD]",
    33: "[STREAMING_WORD]",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What `describe` found.

    verdict : the model that was recognised, or why none was
    config : of that model, or None
    """

    weights: Weights
    verdict: str
    config: Config | None

    @property
    def entries(self) -> Sequence[Entry]:
        return tuple(self.weights.entries.values())

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """By kind: tensors, weights, bytes."""
        found: dict[str, tuple[int, int, int]] = {}
        for entry in self.entries:
            tensors, weights, size = found.get(entry.kind, (0, 0, 0))
            found[entry.kind] = tensors + 1, weights + prod(entry.shape), size + entry.nbytes
        return found

    def lines(self, *, tensors: bool = True) -> Iterator[str]:
        """The whole description as text, with a line per tensor or only the totals."""
        yield f"{self.weights.source}: {self.verdict}"
        if self.config is not None:
            for name, tower in (("encoder", self.config.encoder), ("decoder", self.config.decoder)):
                yield (
                    f"  {name}: {tower.layers} layers of {tower.dim}, {tower.heads} heads of "
                    f"{tower.head_dim} on {tower.kv_heads}, hidden {tower.hidden_dim}, "
                    f"window {tower.window}, theta {tower.rope_theta:g}"
                )
            yield f"  vocabulary {self.config.decoder.vocab}, {self.config.downsample} positions to a token"
        for key, value in self.weights.metadata.items():
            shown = repr(value)
            yield f"  {key} = {shown if len(shown) <= 80 else shown[:77] + '...'}"
        width = max((len(entry.name) for entry in self.entries), default=0)
        for entry in self.entries if tensors else ():
            shape = "x".join(map(str, entry.shape)) or "scalar"
            yield f"{entry.name:{width}}  {entry.kind:5} {shape:>16} {entry.nbytes:>13,}"
        for kind, (count, weights, size) in self.totals().items():
            yield f"{count:6} tensors {kind:5} {weights:>15,} weights {size:>15,} bytes"


def describe(path: str | Path) -> Description:
    """Look into the weights at `path`, whether or not they are a model we know.

    Raises
    ------
    WeightsError   if the file or folder cannot be read as weights at all
    """
    try:
        found = open_checkpoint(path)
    except StageError as reason:
        return Description(open_weights(path), f"not recognised: {reason}", None)
    name = next((name for name, config in MODELS.items() if config == found.config), "a Voxtral Realtime")
    return Description(
        found.weights, f"{name}, {len(found.rows)} tensors in {found.naming}'s naming", found.config
    )


def random_weights(like: str, out: str | Path, seed: int = 0, progress: Progress | None = None) -> Path:
    """Write seeded random weights of the exact tensor table of a model, its params.json and a tekken.json.

    Norms are 1, biases 0, matrices have standard deviation 1 / sqrt(in), so activations stay finite.

    Parameters
    ----------
    like : voxtral-mini-4b, small-voxtral, or the path of a params.json, a config.json or a folder with one
    out : a .gguf (Q4_0) or a .safetensors (bf16) file

    Raises
    ------
    GraphError     if `like` or `out` is neither, or `seed` negative
    ConfigError    if the file that `like` names is absurd
    SinkError      if `out` cannot be written; no partial file is left
    """
    if seed < 0:
        raise GraphError(f"a seed is a whole number from 0, not {seed}")
    out = Path(out)
    kind = check_target(out, None)
    config = _config_like(like)
    rows = list(tensor_table(config).values())
    seeded = zip(rows, np.random.SeedSequence(seed).spawn(len(rows)), strict=True)
    pieces = [random_piece(row, kind_for(out, row, kind), own) for row, own in seeded]
    check_folder(out, config)
    write_weights(out, pieces, config, progress)
    tekken = json.dumps(made_up_tekken(config.decoder.vocab)).encode()
    put_beside(out, config, {"tekken.json": tekken})
    return out


def made_up_tekken(vocab: int, specials: int | None = None) -> dict[str, object]:
    """A tekken.json of `vocab` ids: specials, the single bytes, then invented words with a leading space."""
    if specials is None:
        specials = min(_MOST_SPECIALS, max(vocab - _SINGLE_BYTES, vocab // 8))
    pieces = [bytes([n]) for n in range(_SINGLE_BYTES)]
    pieces += [f" w{n}".encode() for n in range(vocab - specials - _SINGLE_BYTES)]
    return {
        "config": {
            "pattern": r"\s*\S+",
            "num_vocab_tokens": vocab - specials,
            "default_vocab_size": vocab,
            "default_num_special_tokens": specials,
            "version": "v13",
        },
        "vocab": [
            {"rank": n, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for n, piece in enumerate(pieces[: vocab - specials])
        ],
        "special_tokens": [
            {"rank": n, "token_str": _NAMED_SPECIALS.get(n, f"<SPECIAL_{n}>"), "is_control": True}
            for n in range(specials)
        ],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": None,
            "transcription_format": "streaming",
            "transcription_delay_ms": 480,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": 32,
        },
    }


def _config_like(like: str) -> Config:
    if like in MODELS:
        return MODELS[like]
    built_in = Path(graphs.__file__).parent / "models" / like
    if (built_in / "params.json").is_file():
        return load_config(built_in)
    known = ", ".join([*MODELS, "small-voxtral"])
    if not Path(like).exists():
        raise GraphError(
            f"{like!r} should be one of {known}, or the path of a params.json; there is no such file"
        )
    if Path(like).is_file() and Path(like).suffix not in DESCRIBED:
        raise GraphError(f"{like!r} should be one of {known}, or the path of a params.json; it is neither")
    return load_config(like)


def random_piece(row: Row, kind: str, seed: np.random.SeedSequence) -> Piece:
    """A tensor as `random_weights` fills it."""
    if len(row.shape) == 1:
        value = np.float32(0 if row.name.endswith("bias") else 1)
        return Piece(row.mistral, kind, row.shape, lambda: [pack(np.full(row.shape, value), kind)])
    size, deviation = prod(row.shape), prod(row.shape[1:]) ** -0.5
    if kind == "q4_0":
        return Piece(row.mistral, kind, row.shape, lambda: _random_blocks(seed, size, deviation))
    return Piece(row.mistral, kind, row.shape, lambda: _random_floats(seed, size, deviation, kind))


def _random_blocks(seed: np.random.SeedSequence, size: int, deviation: float) -> Iterator[np.ndarray]:
    """Q4_0 blocks of random nibbles under one scale: no float is rounded, so it is fast."""
    random = np.random.Generator(np.random.SFC64(seed))
    scale = np.float16(deviation / _NIBBLE_RMS)
    for blocks in _tiles(size // BLOCK_WEIGHTS, _TILE_BYTES // Q4_BLOCK.itemsize):
        stored = np.empty(blocks, Q4_BLOCK)
        stored["scale"] = scale
        for half in ("front", "back"):
            stored[half] = random.integers(1 << 64, size=blocks, dtype=np.uint64)
        yield stored.view(np.uint8)


def _random_floats(
    seed: np.random.SeedSequence, size: int, deviation: float, kind: str
) -> Iterator[np.ndarray]:
    """Normal values, drawn from a table of them."""
    random = np.random.Generator(np.random.SFC64(seed))
    table = pack(
        random.standard_normal((_TABLE, 1), np.float32) * np.float32(deviation), kind
    )  # [65536, bytes of one]
    table = table.view(f"<u{table.shape[1]}")[:, 0]
    for n in _tiles(size, _TILE_BYTES // table.itemsize):
        yield table[random.integers(_TABLE, size=n, dtype=np.uint16)].view(np.uint8)


def _tiles(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)
