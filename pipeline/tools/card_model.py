"""A model of a real size with random weights that no file holds, and its stages on a card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from kernels import Backend, fused, quant
from kernels.cuda.backend import Cuda
from pipeline.tools.weights import random_piece
from stages import Port
from stages.voxtral.adapter import Adapter
from stages.voxtral.config import Config
from stages.voxtral.decoder import Decoder
from stages.voxtral.encoder import Encoder
from stages.voxtral.names import MISTRAL, Checkpoint, Row, tensor_table
from stages.weights import Entry, Weights

SEED = 0
KIND = "q4_0"
DRAWN = 1 << 20


class MadeUp:
    """As much of `Weights` as a checkpoint asks for; a tensor is made when it is read, always the same.

    The first DRAWN weights of a matrix are random and come again and again: drawing all of them would take
    longer than measuring them.
    """

    source = Path("made up", "random")

    def __init__(self, rows: dict[str, Row]):
        seeds = np.random.SeedSequence(SEED).spawn(len(rows))
        self.metadata: dict[str, Any] = {}
        self._seeds = {row.mistral: seed for row, seed in zip(rows.values(), seeds, strict=True)}
        self._rows = {row.mistral: row for row in rows.values()}
        self.entries = {
            row.mistral: Entry(row.mistral, kind, row.shape, 0, quant.nbytes(kind, row.shape))
            for row in rows.values()
            for kind in [KIND if row.linear else "f32"]
        }

    def raw(self, name: str) -> np.ndarray:
        row, entry = self._rows[name], self.entries[name]
        some = replace(row, shape=(min(row.shape[0], max(1, DRAWN // prod(row.shape[1:]))), *row.shape[1:]))
        chunks = random_piece(some, entry.kind, self._seeds[name]).chunks()
        drawn = np.concatenate([np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks])
        return np.resize(drawn, entry.nbytes)


def random_checkpoint(config: Config) -> Checkpoint:
    """Q4_0 weights of this shape, as `weights random` writes them."""
    rows = tensor_table(config)
    stored = {row.name: row.mistral for row in rows.values()}
    return Checkpoint(config, cast(Weights, MadeUp(rows)), MISTRAL, rows, stored)


def weight_bytes(config: Config, tower: str) -> int:
    """Bytes of the matrices, Q4_0, and convolutions, f32, that a step of `tower` reads; "" is all three."""
    return sum(
        quant.nbytes(KIND if row.linear else "f32", row.shape)
        for row in tensor_table(config).values()
        if row.name.startswith(tower) and ".ada" not in row.name and len(row.shape) > 1
    )


def dense_bytes(config: Config) -> int:
    """What a decoder step reads where the same matrices are bf16."""
    return weight_bytes(config, "decoder") * quant.row_bytes("bf16", 32) // quant.row_bytes(KIND, 32)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The three stages on one backend."""

    encoder: Encoder
    adapter: Adapter
    decoder: Decoder

    @classmethod
    def load(cls, checkpoint: Checkpoint, ops: Backend, context: int = 0) -> Model:
        encoder = Encoder(mel_port(checkpoint.config), checkpoint, ops)
        adapter = Adapter(encoder.gives, checkpoint, ops)
        return cls(encoder, adapter, Decoder(adapter.gives, checkpoint, ops, context=context))


def mel_port(config: Config) -> Port:
    return Port("mel", config.audio.rate, config.audio.hop, config.audio.mels)


def frames_port(config: Config) -> Port:
    """What a decoder alone is plugged into."""
    return Port("frames", config.audio.rate, config.token_hop, config.decoder.dim, "device")


class Unfused:
    """A backend without its fused kernels: every composite is spelled in basic ops."""

    def __init__(self, ops: Cuda):
        self._ops = ops
        self._hidden = {name for name, made in vars(fused).items() if hasattr(made, "__wrapped__")}

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(name)
        return getattr(self._ops, name)
