"""Figures that hang together; how large they are is this machine's business and never asserted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from kernels import open_backend
from pipeline.build import build
from pipeline.errors import GraphError
from pipeline.opening import open_chosen
from pipeline.tools import machine
from pipeline.tools.bench import LANES, bench_graph, find_clip, measure_live
from pipeline.tools.figures import Clip, spread
from pipeline.tools.floors import measure_floors, parameters, products
from stages.voxtral.names import open_checkpoint
from tests.tiny import TINY, tiny_checkpoint


@pytest.fixture(scope="module")
def graph(tiny_run):
    return tiny_run().graph


@pytest.fixture(scope="module")
def bench(graph):
    return bench_graph(graph, seconds=1.0)


def numbers(value) -> list[float]:
    """Every number in a JSON object."""
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_figure_is_there_finite_and_not_negative(bench):
    told = json.loads(json.dumps(bench.as_json()))
    named = (
        "machine backend weights clip load_s peak_bytes delay_ms offline live stages_ms lanes_tick_ms floors"
    )
    assert " ".join(told) == named
    assert all(math.isfinite(n) and n >= 0 for n in numbers(told))
    assert told["backend"] == open_chosen("auto").name and told["clip"] == {"name": "noise", "seconds": 1.0}


def test_the_figures_hang_together(bench):
    live = bench.live
    assert len(live.ticks_ms) == math.ceil(1.0 / 0.08) - 1, "the first block is the opening, the last counts"
    tick = spread(live.ticks_ms)
    assert tick["median"] <= tick["p95"] <= tick["max"]
    spent = live.opening_ms + sum(live.ticks_ms) + live.ending_ms
    assert live.rtf == pytest.approx(spent / 1000)
    assert sum(live.stages_ms.values()) <= tick["max"]
    assert list(bench.lanes_ms) == list(LANES)


def test_the_table_names_machine_weights_every_stage_and_every_lane_count(bench, graph):
    text = bench.table()
    wanted = [node.name for node in graph.nodes]
    wanted += ["machine", "weights", "clip", "offline", "live", "tick", "peer", "floor", "1 lane ", "8 lanes"]
    assert [word for word in wanted if word not in text] == []


def test_the_walk_in_ticks_says_what_a_run_says(graph, tiny_run, restless):
    audio = restless(2.0)
    live = measure_live(build(graph), Clip("restless", audio, 16_000))
    said = tiny_run().transcribe(audio).pieces
    assert live.pieces == len(said) > 0
    delay_ms = 480
    assert len(live.words_ms) == sum(piece.word for piece in said) and min(live.words_ms) >= delay_ms


def test_a_clip_is_repeated_and_cut_to_length():
    clip = Clip("x", np.arange(3, dtype=np.float32), 2)
    assert clip.cut(4.0).samples.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert clip.cut(0.5).samples.tolist() == [0] and clip.cut(4.0).seconds == 4.0


def test_the_graph_chooses_the_clip_and_noise_stands_in(tiny_run, tmp_path, restless):
    path = tmp_path / "talk.wav"
    soundfile.write(path, restless(0.5), 8_000)
    heard = find_clip(tiny_run(f"source: {{file: {{path: '{path}'}}}}\n").graph, 3.0)
    assert (heard.name, heard.rate, heard.seconds) == ("talk.wav", 8_000, 3.0)
    for nothing in ("", "source: {file: {path: nowhere.wav}}\n", "source: {file: {path: '-'}}\n"):
        assert find_clip(tiny_run(nothing).graph, 0.5).name == "noise"


def test_lanes_that_do_not_fit_the_memory_are_left_out(graph, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 0)
    bench = bench_graph(graph, seconds=0.4)
    assert set(bench.lanes_ms.values()) == {None}
    assert bench.table().count("do not fit the memory") == len(LANES)
    assert bench.as_json()["lanes_tick_ms"]["1"] is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, 1e9])
def test_an_absurd_length_is_refused_before_anything_is_loaded(graph, seconds):
    with pytest.raises(GraphError, match=r"seconds should be 0\.4 to 3600"):
        bench_graph(replace(graph, weights="/nowhere"), seconds=seconds)


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_floors_are_of_the_model_s_own_products(tmp_path, kind):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, kind=kind))
    names = {row.name: columns for row, columns in products(checkpoint)}
    assert names["encoder.layers.0.wq"] == 4 and names["decoder.layers.1.w2"] == 1 and names["adapter.0"] == 1
    assert names["decoder.embed"] == 1, "the tied output matrix is the largest product of a tick"
    assert not [name for name in names if "norm" in name or "ada0" in name or "conv" in name]
    assert parameters(checkpoint) > TINY.decoder.vocab * TINY.decoder.dim
    floors = measure_floors(checkpoint, open_backend("portable"))
    assert min(floors.read_bytes_s, floors.read_ms, floors.numpy_ms, floors.linear_ms) > 0
