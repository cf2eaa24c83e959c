"""The built-in model on the CUDA backend: words and times of the portable one, by the kernels of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import BackendMissing
from pipeline.build import build
from pipeline.graph import load_graph
from pipeline.run import Run, load
from tests.kernels.conftest import Row

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "graphs" / "audio" / "default.flac"
MODEL = ROOT / "graphs" / "models" / "small-voxtral"
ROWS = [
    pytest.param(Row("cuda", emulated=(9, 0)), marks=pytest.mark.slow, id="emulated"),
    pytest.param(Row("cuda", {"kv": "q8"}, emulated=(7, 5)), marks=pytest.mark.slow, id="emulated-q8"),
    pytest.param(Row("cuda"), marks=pytest.mark.gpu, id="card"),
    pytest.param(Row("cuda", {"kv": "q8"}), marks=pytest.mark.gpu, id="card-q8"),
]


@pytest.mark.parametrize("row", ROWS)
def test_q4_0_weights_say_the_same_on_a_gpu(row):
    params = {"weights": str(MODEL / "small-voxtral-q4_0.gguf"), "backend": "portable"}
    said = load("file", params=params).transcribe(RECORDING)
    assert said.text
    try:
        backend = row.open()
    except BackendMissing as reason:
        pytest.skip(f"{row}: {reason}")
    graph = load_graph("file", params=params)
    run = Run(graph)
    run.plan = build(graph, backend)
    heard = run.transcribe(RECORDING)
    assert [(piece.text, piece.span) for piece in heard.pieces] == [
        (piece.text, piece.span) for piece in said.pieces
    ]
