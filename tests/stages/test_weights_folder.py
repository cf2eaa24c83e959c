"""From a path to weights: folders, indexes, shards cut anywhere, and files that change under our hands."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stages.errors import FileAbsent, FormatError, WeightsError
from stages.weights import open_weights
from stages.weights.shards import map_bytes
from tests.compare import assert_same
from tests.stages.test_weights_gguf import sample as gguf_sample
from tests.stages.test_weights_safetensors import safetensors, tensor


def one_tensor(name: str, value: float = 1.0) -> bytes:
    return safetensors({name: tensor("F32", [1], 0, 4)}, np.float32(value).tobytes())


def split(folder: Path, data: bytes, *cuts: int) -> None:
    edges = [0, *sorted(cuts), len(data)]
    for n, (start, stop) in enumerate(itertools.pairwise(edges)):
        (folder / f"shard-a{chr(97 + n)}").write_bytes(data[start:stop])


def indexed(folder: Path, **files: str) -> Path:
    """An index that maps tensors to files, and a file with the one tensor for each."""
    for name, file in files.items():
        (folder / file).write_bytes(one_tensor(name))
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return path


@pytest.mark.parametrize(
    ("names", "winner"),
    [
        (["consolidated.safetensors", "model.safetensors", "x.gguf"], "consolidated.safetensors"),
        (["model.safetensors", "other.safetensors", "x.gguf"], "model.safetensors"),
        (["other.safetensors", "x.gguf"], "other.safetensors"),
        (["x.gguf", "shard-aa"], "x.gguf"),
        (["shard-aa", "params.json"], "shard-aa"),
    ],
)
def test_safetensors_wins_over_gguf_in_a_folder(tmp_path: Path, names: list[str], winner: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(one_tensor("w") if name.endswith(".safetensors") else gguf_sample())
    assert open_weights(tmp_path).source.name == winner


def test_two_candidates_of_one_kind_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_sample())
    with pytest.raises(WeightsError, match=r"a\.gguf and b\.gguf .* name one"):
        open_weights(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileAbsent, match=r"expected consolidated\.safetensors, .* found nothing"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["absent.gguf", "absent.safetensors", "absent", "absent-aa"])
def test_an_absent_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileAbsent, match="no such file"):
        open_weights(tmp_path / name)


def test_an_empty_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(WeightsError, match="empty"):
        open_weights(tmp_path / "x.gguf")


def test_a_file_of_another_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(b"RIFF")
    with pytest.raises(WeightsError, match=r"expected a folder, \.safetensors"):
        open_weights(tmp_path / "talk.wav")


def test_an_index_joins_its_files(tmp_path: Path) -> None:
    indexed(tmp_path, a="model-1.safetensors", b="model-2.safetensors")
    weights = open_weights(tmp_path)
    assert list(weights.entries) == ["a", "b"]
    assert_same(weights.array("b"), np.ones(1, np.float32), what="b")


def test_an_index_may_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    for file in ("../x.safetensors", "/x.safetensors", "below/x.safetensors", "..\\x.safetensors"):
        path.write_text(json.dumps({"weight_map": {"a": file}}))
        with pytest.raises(FormatError, match="beside it"):
            open_weights(path)


@pytest.mark.parametrize("file", ["\0.safetensors", "\ud800.safetensors", "x" * 5000 + ".safetensors"])
def test_an_index_with_impossible_names_is_refused(tmp_path: Path, file: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(WeightsError):
        open_weights(path)


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    path = indexed(tmp_path, a="model-1.safetensors", b="model-2.safetensors")
    path.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}))
    with pytest.raises(WeightsError, match=r"'a' should be in model-2\.safetensors"):
        open_weights(path)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": 3}', "{"]
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"index\.json"):
        open_weights(path)


def test_numbered_files_are_joined_without_an_index(tmp_path: Path) -> None:
    for n, name in enumerate("ab", 1):
        (tmp_path / f"consolidated-{n:05}-of-00002.safetensors").write_bytes(one_tensor(name, n))
    assert [float(open_weights(tmp_path).array(name)[0]) for name in "ab"] == [1, 2]


def test_a_missing_numbered_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "consolidated-00001-of-00002.safetensors").write_bytes(one_tensor("a"))
    with pytest.raises(WeightsError, match="00002-of-00002"):
        open_weights(tmp_path)


def test_a_file_that_is_one_of_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "consolidated-00001-of-00000.safetensors").write_bytes(one_tensor("a"))
    with pytest.raises(WeightsError, match="of-00000 counts no files"):
        open_weights(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / f"consolidated-{n:05}-of-00002.safetensors").write_bytes(one_tensor("same"))
    with pytest.raises(FormatError, match="two files"):
        open_weights(tmp_path)


@examples(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, len(gguf_sample()) - 1), min_size=1, max_size=5))
def test_shards_cut_anywhere_read_as_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "whole.gguf").write_bytes(gguf_sample())
    split(folder, gguf_sample(), *cuts)
    whole, pieces = open_weights(folder / "whole.gguf"), open_weights(folder / "shard-ab")
    assert list(pieces.entries) == list(whole.entries)
    for name in whole.entries:
        assert_same(pieces.raw(name), whole.raw(name), what=f"{name} from shards")
        assert not pieces.raw(name).flags.writeable


def test_a_shard_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    split(tmp_path, gguf_sample(), 100, 200, 300)
    (tmp_path / "shard-ac").unlink()
    with pytest.raises(WeightsError, match="shard-ac is missing"):
        open_weights(tmp_path)


def test_a_missing_last_shard_is_suspected(tmp_path: Path) -> None:
    split(tmp_path, gguf_sample(), len(gguf_sample()) - 100)
    (tmp_path / "shard-ab").unlink()
    with pytest.raises(FormatError, match="is the file cut short, or a shard absent"):
        open_weights(tmp_path)


def test_a_file_that_shrinks_while_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_sample())
    weights = open_weights(path)
    os.truncate(path, 64)
    with pytest.raises(WeightsError, match="shrank from"):
        weights.array("f32")


def test_a_file_that_vanishes_while_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_sample())
    weights = open_weights(path)
    path.unlink()
    with pytest.raises(WeightsError, match="vanished"):
        weights.array("f32")


def test_nothing_can_be_read_at_the_end_of_the_last_piece(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"de")
    data = map_bytes(tmp_path / "a", tmp_path / "b")
    assert (data.read(5, 0), data.read(3, 0), data.read(1, 3), data.read(0, 5)) == (
        b"",
        b"",
        b"bcd",
        b"abcde",
    )
