"""What a model takes is counted as it will be taken, and said before it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels import open_backend
from pipeline.build import build
from pipeline.room import NOTABLE_BYTES, SMALLER, Room, ring_bytes, room_for
from pipeline.tools import machine
from pipeline.tools.card_model import random_checkpoint
from stages.voxtral.config import OFFICIAL
from stages.voxtral.names import open_checkpoint
from tests.tiny import TINY


def test_rings_are_counted_for_both_towers():
    encoder, decoder = TINY.encoder, TINY.decoder
    expected = 8 * (2 * 4 * 16 * encoder.window + 2 * 2 * 24 * decoder.window)
    assert ring_bytes(TINY, open_backend("portable")) == expected


def test_a_context_shortens_the_decoder_s_ring_alone_and_never_lengthens_it():
    ops, decoder = open_backend("portable"), TINY.decoder
    slot = 8 * decoder.layers * decoder.kv_heads * decoder.head_dim
    full = ring_bytes(TINY, ops)
    assert ring_bytes(TINY, ops, 5) == full - slot * (decoder.window - 5)
    assert ring_bytes(TINY, ops, 10_000) == full


def test_weights_are_counted_as_stored(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    room = room_for(checkpoint, open_backend("portable"))
    assert room.weights == sum(entry.nbytes for entry in checkpoint.weights.entries.values())
    assert room.need == room.weights + room.lane and room.lane == room.full


def test_the_real_model_s_room_is_that_of_the_design(monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 4_000_000_000)
    room = room_for(random_checkpoint(OFFICIAL), open_backend("portable"), 750)
    assert 2.4e9 < room.weights < 2.6e9 and room.lane < room.full and room.fits
    said = str(room)
    assert "2.5 GB of weights" in said and "of 750 positions" in said and "with full windows" in said
    assert said.endswith("4.0 GB are free")


def test_what_is_free_may_be_unknown():
    room = Room(10, 5, 5, 0, None)
    assert room.fits and str(room).endswith("does not say what is free")
    assert not replace(room, free=14).fits and replace(room, free=15).fits


@pytest.mark.parametrize(
    ("notable", "free", "lines"), [(NOTABLE_BYTES, 1 << 40, 0), (0, 1 << 40, 1), (0, 5, 1)]
)
def test_a_large_model_says_what_it_takes_before_it_takes_it(
    tiny_run, monkeypatch, capsys, notable, free, lines
):
    graph = tiny_run("", "decoder.context=7").graph
    monkeypatch.setattr("pipeline.build.NOTABLE_BYTES", notable)
    monkeypatch.setattr(machine, "memory_available", lambda: free)
    capsys.readouterr()
    build(graph, open_backend("portable"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert all(line.startswith(f"{graph.weights} on portable takes ") for line in said)
    assert all(" for one speaker of 7 positions" in line for line in said)
    assert all(line.endswith(SMALLER) == (free == 5) for line in said)
