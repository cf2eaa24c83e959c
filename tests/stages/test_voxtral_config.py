"""Configurations: both JSONs, the derived clock, the delay table, and absurd values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stages.errors import ConfigError
from stages.voxtral.config import (
    OFFICIAL,
    PARAMS_KEY,
    config_of,
    delay_tokens,
    load_config,
    parse_params,
    prefix_tokens,
    right_pad_tokens,
    to_params,
)
from stages.voxtral.names import tensor_table
from stages.weights import open_weights
from tests.stages.test_tekken import ABSURD
from tests.stages.test_weights_gguf import gguf, info, pair, string
from tests.tiny import TINY, tiny_checkpoint, transformers_config

# The published table: delay in ms, tokens, prompt length, right padding in samples
DELAYS = [
    (80, 1, 34, 15360), (160, 2, 35, 16640), (240, 3, 36, 17920), (320, 4, 37, 19200), (400, 5, 38, 20480),
    (480, 6, 39, 21760), (560, 7, 40, 23040), (640, 8, 41, 24320), (720, 9, 42, 25600), (800, 10, 43, 26880),
    (880, 11, 44, 28160), (960, 12, 45, 29440), (1040, 13, 46, 30720), (1120, 14, 47, 32000),
    (1200, 15, 48, 33280), (2400, 30, 63, 52480),
]  # fmt: skip


def set_at(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`data` with the value at a dotted path replaced."""
    *parents, last = path.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return data


def test_params_json_says_what_the_official_constants_say() -> None:
    assert parse_params(json.dumps(to_params(OFFICIAL)).encode(), "params.json") == OFFICIAL


def test_both_jsons_give_the_same_configuration(tmp_path: Path) -> None:
    mistral = tiny_checkpoint(tmp_path / "a", "mistral")
    transformers = tiny_checkpoint(tmp_path / "b", "transformers")
    assert load_config(mistral) == load_config(transformers) == TINY


@pytest.mark.oracle
def test_the_config_json_that_transformers_writes_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    data = transformers_config(TINY)
    del data["model_type"]
    transformers.VoxtralRealtimeConfig(**data).save_pretrained(tmp_path)
    assert load_config(tmp_path) == TINY


def test_the_clock_follows_from_hops_and_strides() -> None:
    assert (OFFICIAL.position_hop, OFFICIAL.token_hop, OFFICIAL.mels_per_token) == (320, 1280, 8)
    assert (OFFICIAL.encoder.q_width, OFFICIAL.decoder.q_width, OFFICIAL.decoder.kv_width) == (
        2048,
        4096,
        1024,
    )
    assert OFFICIAL.stack_width == 5120


@pytest.mark.parametrize(("ms", "tokens", "prefix", "right"), DELAYS)
def test_delays_are_those_of_the_published_table(ms: int, tokens: int, prefix: int, right: int) -> None:
    assert delay_tokens(ms) == tokens
    assert prefix_tokens(tokens) == prefix
    assert right_pad_tokens(tokens) * OFFICIAL.token_hop == right


@pytest.mark.parametrize("ms", [row[0] for row in DELAYS])
def test_delays_and_padding_are_those_of_mistral_common(ms: int) -> None:
    audio = pytest.importorskip("mistral_common.tokens.tokenizers.audio")
    config = audio.AudioConfig(
        sampling_rate=16000,
        frame_rate=12.5,
        encoding_config=audio.AudioSpectrogramConfig(num_mel_bins=128, hop_length=160, window_size=400),
        transcription_format=audio.TranscriptionFormat.STREAMING,
        transcription_delay_ms=480.0,
        streaming_look_ahead_ms=2.5,
        streaming_look_back_ms=52.5,
        streaming_n_left_pad_tokens=32,
    )
    assert delay_tokens(ms) == config.get_num_delay_tokens(ms)
    assert right_pad_tokens(delay_tokens(ms)) == config.n_right_pad_tokens(ms)


@pytest.mark.parametrize(
    ("ms", "near"),
    [(0, "80 ms"), (-80, "80 ms"), (100, "80 ms or 160 ms"), (1280, "1200 ms or 2400 ms"), (9999, "2400 ms"),
     (480.5, "480 ms or 560 ms"), (float("nan"), "480 ms"), (float("inf"), "2400 ms")],
)  # fmt: skip
def test_another_delay_is_refused_with_its_neighbours(ms: float, near: str) -> None:
    with pytest.raises(ConfigError, match=f"nearest {near}$"):
        delay_tokens(ms)


ENCODER = "multimodal.whisper_model_args.encoder_args"
AUDIO = f"{ENCODER}.audio_encoding_args"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("dim", 1 << 30, "dim should be a whole number from 1 to 1048576, found 1073741824"),
        ("dim", -1, "dim should be"),
        ("dim", "3072", "dim should be"),
        ("dim", None, "'dim' is missing"),
        ("dim", 97, "width should be even"),
        ("n_layers", 10**9, "n_layers should be a whole number from 1 to 1000"),
        ("n_heads", 0, "n_heads should be"),
        ("n_kv_heads", 3, "n_kv_heads should be a divisor of the 4 query heads, found 3"),
        ("head_dim", 25, "head_dim should be even"),
        ("sliding_window", 0, "sliding_window should be"),
        ("sliding_window", None, "'sliding_window' is missing"),
        ("rope_theta", 0, "rope_theta should be"),
        ("rope_theta", 1e300, "rope_theta should be"),
        ("norm_eps", -1e-5, "norm_eps should be"),
        ("vocab_size", 1 << 40, "vocab_size should be"),
        ("vocab_size", 33, "vocab_size should be a whole number from 34"),
        ("tied_embeddings", False, "tied_embeddings should be True, the only variant implemented"),
        ("ada_rms_norm_t_cond", False, "ada_rms_norm_t_cond should be True"),
        ("multimodal", None, "'multimodal' is missing"),
        (f"{ENCODER}.pos_embed", "sinusoidal", "encoder_args: pos_embed should be 'rope'"),
        (f"{ENCODER}.n_layers", [32], "found a list of 1"),
        (f"{AUDIO}.hop_length", 0, "audio_encoding_args: hop_length should be"),
        (f"{AUDIO}.frame_rate", 25.0, "give 12.5 tokens a second, but it says 25"),
        (f"{AUDIO}.hop_length", 320, "give 6.25 tokens a second, but it says 12.5"),
        ("multimodal.whisper_model_args.downsample_args.downsample_factor", 2, "give 25 tokens a second"),
    ],
)
def test_an_absurd_value_is_refused_with_its_field(
    tmp_path: Path, path: str, value: Any, reason: str
) -> None:
    file = tmp_path / "params.json"
    file.write_text(json.dumps(set_at(to_params(TINY), path, value)))
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("model_type", "whisper", "model_type should be 'voxtral_realtime'"),
        ("text_config.hidden_size", 1e30, "hidden_size should be"),
        ("text_config.rope_parameters.rope_type", "yarn", "rope_type should be 'default'"),
        ("text_config.rope_parameters", None, "rope_parameters"),
        ("text_config.tie_word_embeddings", False, "tie_word_embeddings should be True"),
        ("audio_config.num_mel_bins", 0, "num_mel_bins should be"),
        ("audio_length_per_tok", 4, "give 12.5 tokens a second, but it says 25"),
    ],
)
def test_an_absurd_value_in_config_json_is_refused(
    tmp_path: Path, path: str, value: Any, reason: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(set_at(transformers_config(TINY), path, value)))
    with pytest.raises(ConfigError, match=reason):
        load_config(tmp_path)


def leaves(data: dict[str, Any], above: str = "") -> list[str]:
    """The dotted paths of all values in nested objects, the objects themselves included."""
    paths = [above + key for key in data]
    return paths + [p for k, v in data.items() if isinstance(v, dict) for p in leaves(v, f"{above}{k}.")]


@examples(max_examples=100, deadline=None)
@given(data=st.data(), value=ABSURD)
@pytest.mark.parametrize("text", [to_params(TINY), transformers_config(TINY)], ids=["params", "config"])
def test_any_value_anywhere_is_a_configuration_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    file = tmp_path_factory.mktemp("absurd") / "params.json"
    path = data.draw(st.sampled_from(leaves(text)))
    file.write_text(json.dumps(set_at(json.loads(json.dumps(text)), path, value)))
    try:
        config = load_config(file)
    except ConfigError as reason:
        assert str(reason).startswith(f"{file}: ") and len(str(reason)) < 600
    else:
        assert config.token_hop * 12.5 == config.audio.rate
        assert len(tensor_table(config)) < 13 * 2 * 1000


def test_other_downsampling_is_allowed_where_the_rates_agree(tmp_path: Path) -> None:
    config = replace(TINY, downsample=2)
    assert parse_params(json.dumps(to_params(config)).encode(), "params.json") == config


def test_a_lone_gguf_is_configured_by_the_params_inside_it(tmp_path: Path) -> None:
    path = tmp_path / "lone.gguf"
    params = pair(PARAMS_KEY, 8, string(json.dumps(to_params(TINY))))
    path.write_bytes(gguf([info("w", (4,), 0, 0)], bytes(32), [params]))
    assert load_config(path) == TINY


def test_params_json_wins_over_the_params_inside(tmp_path: Path) -> None:
    path = tmp_path / "lone.gguf"
    path.write_bytes(
        gguf([info("w", (4,), 0, 0)], bytes(32), [pair(PARAMS_KEY, 8, string(json.dumps(to_params(TINY))))])
    )
    other = replace(TINY, encoder=replace(TINY.encoder, window=5))
    (tmp_path / "params.json").write_text(json.dumps(to_params(other)))
    assert config_of(open_weights(path)) == other


def test_a_lone_gguf_with_the_official_embeddings_is_the_official_model(tmp_path: Path) -> None:
    path = tmp_path / "lone.gguf"
    head = gguf([info("embeddings", (3072, 131_072), 2, 0)])
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 131_072 * 3072 // 32 * 18)  # sparse: no byte of it is stored
    assert load_config(path) == OFFICIAL


def test_a_lone_file_of_another_size_asks_for_its_params(tmp_path: Path) -> None:
    path = tmp_path / "lone.gguf"
    path.write_bytes(gguf([info("w", (4,), 0, 0)], bytes(32)))
    with pytest.raises(ConfigError, match=r"lone\.gguf: expected params\.json or config\.json beside it"):
        load_config(path)
