"""`weights FILE` and `weights random`: what is inside, and files of the true shapes made of noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.errors import GraphError
from pipeline.tools.weights import describe, made_up_tekken, random_weights
from stages.errors import WeightsError
from stages.text.tekken import load_tekken
from stages.voxtral.config import OFFICIAL, to_params
from stages.voxtral.names import open_checkpoint
from tests.stages.test_weights_gguf import sample
from tests.tiny import TINY, tiny_checkpoint

DEVIATION_TOLERANCE = 0.1  # of a standard deviation estimated from at least 2048 draws


@pytest.fixture
def like(tmp_path: Path) -> str:
    """A params.json somewhat larger than tiny, so that statistics mean something."""
    path = tmp_path / "like" / "params.json"
    path.parent.mkdir()
    path.write_text(json.dumps(to_params(replace(TINY, decoder=replace(TINY.decoder, vocab=2000)))))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "kind", "rest"), [("x.gguf", "q4_0", "f32"), ("x.safetensors", "bf16", "bf16")]
)
def test_random_weights_are_a_whole_checkpoint(
    folder: Path, like: str, name: str, kind: str, rest: str
) -> None:
    checkpoint = open_checkpoint(random_weights(like, folder / name))
    assert checkpoint.config.decoder.vocab == 2000
    for ours, row in checkpoint.rows.items():
        assert checkpoint.raw(ours)[1] == (kind if row.linear else rest)


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors"])
def test_random_weights_keep_activations_finite(folder: Path, like: str, name: str) -> None:
    checkpoint = open_checkpoint(random_weights(like, folder / name))
    for ours, row in checkpoint.rows.items():
        array = checkpoint.array(ours)
        if len(row.shape) == 1:
            assert (array == (0 if ours.endswith("bias") else 1)).all(), ours
        else:
            scaled = float(array.std() * np.prod(row.shape[1:]) ** 0.5)
            assert abs(scaled - 1) < DEVIATION_TOLERANCE, f"{ours}: {scaled} / sqrt(in)"


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors"])
def test_a_seed_means_the_same_file(tmp_path: Path, like: str, name: str) -> None:
    files = []
    for run, seed in (("a", 7), ("b", 7), ("c", 8)):
        (tmp_path / run).mkdir()
        files.append(random_weights(like, tmp_path / run / name, seed).read_bytes())
    assert files[0] == files[1] != files[2]


def test_params_and_a_vocabulary_of_the_right_size_stand_beside(folder: Path, like: str) -> None:
    random_weights(like, folder / "x.gguf")
    assert load_tekken(folder / "tekken.json").vocab_size == 2000
    assert (folder / "params.json").is_file()


def test_a_vocabulary_that_is_there_is_left_alone(folder: Path, like: str) -> None:
    (folder / "tekken.json").write_text("mine")
    random_weights(like, folder / "x.gguf")
    assert (folder / "tekken.json").read_text() == "mine"


def test_progress_ends_with_all_bytes(folder: Path, like: str) -> None:
    seen: list[tuple[int, int]] = []
    random_weights(like, folder / "x.safetensors", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0


def test_an_unknown_model_is_refused(folder: Path) -> None:
    with pytest.raises(GraphError, match=r"'voxtral-9b' should be one of voxtral-mini-4b, small-voxtral, or"):
        random_weights("voxtral-9b", folder / "x.gguf")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("vocab", "specials"), [(131_072, 1000), (480, 224), (300, 44), (128, 16)])
def test_made_up_vocabularies_of_any_size_load(tmp_path: Path, vocab: int, specials: int) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(made_up_tekken(vocab)))
    tekken = load_tekken(path)
    assert (tekken.vocab_size, len(tekken.specials)) == (vocab, specials)
    assert tekken.bytes_of(vocab - 1) != b""


def test_the_official_model_is_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(to_params(OFFICIAL)))
    (tmp_path / "x.gguf").write_bytes(sample())
    assert "another model's file" in describe(tmp_path).verdict


def test_a_description_holds_every_tensor_and_adds_up(tmp_path: Path) -> None:
    found = describe(tiny_checkpoint(tmp_path, kind="q4_0"))
    lines = list(found.lines())
    assert found.config == TINY
    assert "57 tensors in mistral's naming" in found.verdict
    assert sum(entry.name in line for entry in found.entries for line in lines[1:]) >= len(found.entries)
    tensors, weights, size = found.totals()["q4_0"]
    assert (tensors, size) == (35, weights // 32 * 18)
    assert sum(n for n, _, _ in found.totals().values()) == len(found.entries) == 57


def test_an_unknown_file_is_still_described(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(sample())
    found = describe(path)
    assert found.config is None and "not recognised" in found.verdict
    assert any(line.startswith("q4_0") for line in found.lines())


def test_what_is_no_weights_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"RIFF....WAVE")
    with pytest.raises(WeightsError, match="GGUF"):
        describe(tmp_path / "x.gguf")


def test_the_command_takes_its_file_before_and_behind_its_options(like, folder, capsys):
    before, behind = folder / "a.gguf", folder / "b.gguf"
    assert main(["weights", "random", str(before), "--like", like, "--seed", "7"]) == 0
    assert main(["weights", "random", "--like", like, "--seed", "7", str(behind)]) == 0
    assert before.read_bytes() == behind.read_bytes()
    assert main(["weights", str(before)]) == 0
    totals = capsys.readouterr().out.splitlines()
    assert main(["weights", str(before), "--tensors"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(totals) + len(describe(before).entries)
