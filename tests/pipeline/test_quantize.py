"""Conversion: the right bytes, in bounded memory, complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.quant import pack
from pipeline.errors import GraphError, SinkError
from pipeline.tools.quantize import quantize
from stages.errors import WeightsError
from stages.voxtral.config import load_config, to_params
from stages.voxtral.names import open_checkpoint
from tests.compare import assert_same
from tests.tiny import TINY, tiny_arrays, tiny_checkpoint

SOURCES = [("mistral", "f32"), ("mistral", "bf16"), ("mistral", "q8_0"), ("transformers", "f16")]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk looks like from inside: writing on fails."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("naming", "kind"), SOURCES)
@pytest.mark.parametrize("target", ["q4_0", "q8_0", "bf16"])
def test_matrices_are_packed_and_the_rest_becomes_f32(
    tmp_path: Path, naming: str, kind: str, target: str
) -> None:
    source = open_checkpoint(tiny_checkpoint(tmp_path / "in", naming, kind))
    (tmp_path / "out").mkdir()
    made = open_checkpoint(quantize(tmp_path / "in", tmp_path / "out" / "x.gguf", target))
    assert made.naming == "mistral"
    for name, row in made.rows.items():
        raw, stored, _ = made.raw(name)
        assert stored == (target if row.linear else "f32")
        assert_same(raw, pack(source.array(name), stored).reshape(-1), what=name)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_safetensors_out_holds_every_tensor_in_one_kind(tmp_path: Path, kind: str) -> None:
    tiny_checkpoint(tmp_path / "in", kind="f32")
    (tmp_path / "out").mkdir()
    out = quantize(tmp_path / "in", tmp_path / "out" / "x.safetensors", kind)
    made, arrays = open_checkpoint(out), tiny_arrays()
    for name, array in arrays.items():
        raw, stored, _ = made.raw(name)
        assert stored == kind
        assert_same(raw, pack(array, kind).reshape(-1), what=name)


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    tiny_checkpoint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    loaded = package.load_file(quantize(tmp_path / "in", tmp_path / "out" / "x.safetensors", "f32"))
    rows, arrays = open_checkpoint(tmp_path / "in").rows, tiny_arrays()
    assert len(loaded) == len(rows)
    for name, row in rows.items():
        assert_same(loaded[row.mistral], arrays[name], what=name)


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    folder = tiny_checkpoint(tmp_path, kind="q4_0")
    reader, ours = package.GGUFReader(folder / "tiny.gguf"), open_checkpoint(folder).weights
    assert reader.fields["general.architecture"].contents() == "voxtral"
    assert [tensor.name for tensor in reader.tensors] == list(ours.entries)
    for tensor in reader.tensors:
        values = package.dequantize(tensor.data, tensor.tensor_type).reshape(ours.entries[tensor.name].shape)
        assert_same(ours.array(tensor.name), values, what=tensor.name)


def test_bytes_that_are_already_right_are_copied_not_rounded_again(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_checkpoint(tmp_path, kind="q4_0"))
    (tmp_path / "out").mkdir()
    made = open_checkpoint(quantize(tmp_path, tmp_path / "out" / "copy.gguf"))
    for name in source.rows:
        assert_same(made.raw(name)[0], source.raw(name)[0], what=name)


def test_a_lone_gguf_carries_its_configuration(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    out = quantize(tmp_path / "in", tmp_path / "out" / "x.gguf")
    (out.parent / "params.json").unlink()
    assert open_checkpoint(out).config == TINY


@pytest.mark.parametrize("naming", ["mistral", "transformers"])
def test_configuration_and_vocabulary_are_put_beside_the_output(tmp_path: Path, naming: str) -> None:
    tiny_checkpoint(tmp_path / "in", naming)
    (tmp_path / "out").mkdir()
    quantize(tmp_path / "in", tmp_path / "out" / "x.gguf")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["params.json", "tekken.json", "x.gguf"]
    assert load_config(tmp_path / "out" / "params.json") == TINY
    for name in {"params.json", "tekken.json"} & {p.name for p in (tmp_path / "in").iterdir()}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_the_output_may_stand_beside_the_source(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    before = (folder / "params.json").read_bytes()
    assert open_checkpoint(quantize(folder, folder / "x.gguf")).config == TINY
    assert (folder / "params.json").read_bytes() == before


def test_progress_counts_every_byte_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tiny_checkpoint(tmp_path)
    quantize(tmp_path, tmp_path / "x.gguf", progress=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (
        seen[-1][0]
        == seen[-1][1]
        == sum(e.nbytes for e in open_checkpoint(tmp_path / "x.gguf").weights.entries.values())
    )


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors"])
def test_a_full_disk_is_an_error_that_leaves_no_partial_file(tmp_path: Path, name: str) -> None:
    tiny_checkpoint(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with files_no_larger_than(100_000), pytest.raises(SinkError, match=rf"{name}: cannot be written: "):
        quantize(tmp_path, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_interrupt_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(tmp_path, tmp_path / "x.gguf", progress=stop)
    assert (tmp_path / "x.gguf").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("x.bin", None, r"expected a name ending in \.gguf or \.safetensors, found '\.bin'"),
        ("x.safetensors", "q4_0", r"\.safetensors file is written as bf16, f16, f32, not 'q4_0'"),
        ("x.gguf", "q5_k", r"\.gguf file is written as .* not 'q5_k'"),
        ("consolidated.safetensors", "f32", "also what is to be read"),
    ],
)
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, name: str, kind: str | None, reason: str) -> None:
    tiny_checkpoint(tmp_path)
    with pytest.raises(GraphError, match=reason):
        quantize(tmp_path, tmp_path / name, kind)


def test_an_absent_folder_is_said(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    with pytest.raises(SinkError, match=r"'.*nowhere' does not exist; make it first"):
        quantize(tmp_path, tmp_path / "nowhere" / "x.gguf")


def test_two_models_do_not_share_a_folder(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    other = to_params(replace(TINY, encoder=replace(TINY.encoder, window=5)))
    (tmp_path / "out" / "params.json").write_text(json.dumps(other))
    with pytest.raises(GraphError, match=r"is that of another model; write x\.gguf into a folder of its own"):
        quantize(tmp_path / "in", tmp_path / "out" / "x.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_value_that_q4_0_cannot_carry_is_named_by_its_tensor(tmp_path: Path, bad: float) -> None:
    folder = tiny_checkpoint(tmp_path)
    entry = open_checkpoint(folder).weights.entries["layers.1.feed_forward.w3.weight"]
    with (folder / "consolidated.safetensors").open("r+b") as file:
        file.seek(entry.offset + 400)
        file.write(np.float32(bad).tobytes())
    with pytest.raises(WeightsError, match=r"layers\.1\.feed_forward\.w3\.weight"):
        quantize(folder, folder / "x.gguf")
    assert not (folder / "x.gguf").exists()


def test_rows_that_are_not_whole_blocks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = replace(TINY, encoder=replace(TINY.encoder, hidden_dim=120))
    folder = tiny_checkpoint(tmp_path, config=config)
    with pytest.raises(WeightsError, match=r"feed_forward\.w2\.weight.*120"):
        quantize(folder, folder / "x.gguf")
    assert not (folder / "x.gguf").exists()
