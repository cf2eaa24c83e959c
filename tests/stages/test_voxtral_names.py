"""The tensor table: complete, checked before anything is loaded, and equal whichever naming a file uses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.quant import pack
from pipeline.tools.quantize import Piece, write_weights
from stages.errors import ConfigError, WeightsError
from stages.voxtral.config import OFFICIAL, to_params
from stages.voxtral.names import MISTRAL, TRANSFORMERS, open_checkpoint, tensor_table
from tests.compare import assert_same
from tests.stages.test_weights_gguf import gguf, info, pair, string
from tests.tiny import TINY, halves, tiny_arrays, tiny_checkpoint, transformers_config

OFFICIAL_WEIGHTS = 4_429_679_360  # of the published parameter count
Q4_BYTES, REST_BYTES = 2_488_393_728, 23_473_152  # of the published GGUF: matrices, and the rest as f32


def rewrite(folder: Path, *, drop: str = "", rename: dict[str, str] | None = None, reshape: str = "") -> None:
    """Replace the tiny SafeTensors file in `folder` by one with faults; names are those in the file."""
    checkpoint = open_checkpoint(folder)
    pieces = []
    for entry in checkpoint.weights.entries.values():
        if drop and drop in entry.name:
            continue
        data = checkpoint.weights.raw(entry.name).copy()
        shape = entry.shape[::-1] if entry.name == reshape else entry.shape
        name = (rename or {}).get(entry.name, entry.name)
        pieces.append(Piece(name, entry.kind, shape, lambda data=data: [data]))
    write_weights(checkpoint.weights.source, pieces, checkpoint.config)


def test_the_official_table_has_the_published_tensors_and_sizes() -> None:
    rows = tensor_table(OFFICIAL).values()
    weights = {row.name: int(np.prod(row.shape)) for row in rows}
    matrices = [row for row in rows if row.linear]
    assert (len(rows), len(matrices), sum(weights.values())) == (711, 461, OFFICIAL_WEIGHTS)
    assert sum(weights[row.name] for row in matrices) // 32 * 18 == Q4_BYTES
    assert sum(weights[row.name] for row in rows if not row.linear) * 4 == REST_BYTES


def test_names_in_files_are_unique() -> None:
    rows = tensor_table(OFFICIAL).values()
    assert len({row.mistral for row in rows}) == len({row.transformers for row in rows}) == len(rows)


@pytest.mark.oracle
def test_the_table_is_that_of_transformers_own_file(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    data = transformers_config(TINY)
    del data["model_type"]
    model = transformers.VoxtralRealtimeForConditionalGeneration(transformers.VoxtralRealtimeConfig(**data))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.naming, checkpoint.config) == (TRANSFORMERS, TINY)
    own = {name.removeprefix("model."): p.detach().numpy() for name, p in model.named_parameters()}
    query = own["audio_tower.layers.1.self_attn.q_proj.weight"]
    ours = checkpoint.array("encoder.layers.1.wq")
    assert_same(halves(ours, TINY.encoder.heads), query, what="queries back in transformers' order")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_both_namings_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    mistral = open_checkpoint(tiny_checkpoint(tmp_path / "a", MISTRAL, kind))
    transformers = open_checkpoint(tiny_checkpoint(tmp_path / "b", TRANSFORMERS, kind))
    assert (mistral.naming, transformers.naming) == (MISTRAL, TRANSFORMERS)
    for name in tensor_table(TINY):
        (ours, *rest), (theirs, *also) = mistral.raw(name), transformers.raw(name)
        assert rest == also == [kind, tensor_table(TINY)[name].shape]
        assert_same(theirs, ours, what=f"{name} from transformers' naming")


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_a_gguf_file_holds_packed_matrices_and_f32_for_the_rest(tmp_path: Path, kind: str) -> None:
    checkpoint, arrays = open_checkpoint(tiny_checkpoint(tmp_path, kind=kind)), tiny_arrays()
    for name, row in checkpoint.rows.items():
        raw, stored, shape = checkpoint.raw(name)
        assert (stored, shape) == (kind if row.linear else "f32", row.shape)
        assert_same(raw, pack(arrays[name], stored).reshape(-1), what=name)


def test_permuted_rows_are_put_back_in_any_kind(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, TRANSFORMERS)
    rows, arrays = tensor_table(TINY), tiny_arrays()
    pieces = []
    for row in rows.values():
        array = halves(arrays[row.name], row.heads) if row.heads else arrays[row.name]
        kind = "q4_0" if row.linear else "f32"
        pieces.append(Piece(row.transformers, kind, row.shape, lambda a=array, k=kind: [pack(a, k)]))
    (folder / "model.safetensors").unlink()
    write_weights(folder / "model.gguf", pieces, TINY)
    checkpoint = open_checkpoint(folder)
    for name in (
        "encoder.layers.0.wq",
        "encoder.layers.0.wq_bias",
        "decoder.layers.1.wk",
        "decoder.layers.1.wv",
    ):
        raw, kind, _ = checkpoint.raw(name)
        assert_same(raw, pack(arrays[name], kind).reshape(-1), what=name)


def test_names_of_tensors_in_memory_are_accepted(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, TRANSFORMERS)
    rows = tensor_table(TINY).values()
    in_memory = {
        r.transformers: "model." + r.transformers.replace("language_model.model.", "language_model.")
        for r in rows
    }
    rewrite(folder, rename=in_memory)
    assert_same(open_checkpoint(folder).array("decoder.norm"), tiny_arrays()["decoder.norm"], what="norm")


def test_all_faults_are_told_in_one_error(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    rewrite(
        folder,
        drop="ffn_norm",
        rename={"norm.weight": "norm.wait"},
        reshape="layers.0.feed_forward.w1.weight",
    )
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert (
        "of 57 tensors 5 missing: " in text
        and "'layers.0.ffn_norm.weight' [96]" in text
        and "and 1 more" in text
    )
    assert "1 misshapen: 'layers.0.feed_forward.w1.weight' should be [160, 96], is [96, 160]" in text
    assert "1 unexpected: 'norm.wait'" in text
    assert "do params.json and weights belong together?" in text


def test_an_absent_shard_is_suspected_when_tensors_are_merely_missing(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    rewrite(folder, drop="whisper_encoder")
    with pytest.raises(WeightsError, match="is a shard absent"):
        open_checkpoint(folder)


def test_weights_of_another_shape_than_params_json_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    wider = replace(TINY, decoder=replace(TINY.decoder, hidden_dim=192))
    (folder / "params.json").write_text(json.dumps(to_params(wider)))
    with pytest.raises(WeightsError, match=r"6 misshapen: .* do params\.json and weights belong together"):
        open_checkpoint(folder)


def test_another_models_file_is_recognised_as_such(tmp_path: Path) -> None:
    path = tmp_path / "llama.gguf"
    architecture = pair("general.architecture", 8, string("llama"))
    path.write_bytes(gguf([info("token_embd.weight", (4,), 0, 0)], bytes(32), [architecture]))
    (tmp_path / "params.json").write_text(json.dumps(to_params(TINY)))
    with pytest.raises(WeightsError, match=r"another model's file: .* found 'token_embd\.weight' .*'llama'"):
        open_checkpoint(path)


def test_the_vocabulary_is_looked_for_beside_the_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    assert checkpoint.tekken == tmp_path / "tekken.json"
    assert checkpoint.left_pad_tokens == 32


@pytest.mark.parametrize(("stated", "expected"), [(16, 16), (0, 0), (None, 32)])
def test_left_padding_is_what_tekken_json_says_or_the_official_32(
    tmp_path: Path, stated: int | None, expected: int
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    data = json.loads(checkpoint.tekken.read_text())
    data["audio"]["streaming_n_left_pad_tokens"] = stated
    checkpoint.tekken.write_text(json.dumps(data))
    assert checkpoint.left_pad_tokens == expected


@pytest.mark.parametrize("stated", [-1, 10**9, "32", 1.5, True])
def test_absurd_left_padding_is_refused(tmp_path: Path, stated: object) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    data = json.loads(checkpoint.tekken.read_text())
    data["audio"]["streaming_n_left_pad_tokens"] = stated
    checkpoint.tekken.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"tekken\.json: streaming_n_left_pad_tokens should be 0 to 1000"):
        _ = checkpoint.left_pad_tokens


def test_a_missing_vocabulary_leaves_the_official_padding(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    checkpoint.tekken.unlink()
    assert checkpoint.left_pad_tokens == 32
