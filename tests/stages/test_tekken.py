"""tekken.json: agreement with mistral-common, and that a damaged file is refused with its reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipeline.tools.weights import made_up_tekken
from stages.errors import ConfigError, FileAbsent, FormatError
from stages.text.tekken import Tekken, load_tekken
from stages.text.utf8 import Characters

VOCAB, SPECIALS = 400, 64
NAMES = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "tekken.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of mistral-common's wheel under a header like that of the realtime model."""
    package = pytest.importorskip("mistral_common")
    data = json.loads((Path(package.__file__).parent / "data" / "tekken_240718.json").read_text())
    made_up = made_up_tekken(2048, 1000)
    data["config"]["version"] = "v13"
    names = {s["rank"]: s["token_str"] for s in made_up["special_tokens"]} | NAMES  # type: ignore[attr-defined]
    data["special_tokens"] = [{"rank": n, "token_str": names[n], "is_control": True} for n in range(1000)]
    return write(tmp_path_factory.mktemp("real"), data | {"audio": made_up["audio"]})


@pytest.fixture(scope="module")
def ours(real: Path) -> Tekken:
    return load_tekken(real)


@pytest.fixture(scope="module")
def theirs(real: Path) -> Any:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    return module.Tekkenizer.from_file(real)


def test_every_id_spells_what_mistral_common_says(ours: Tekken, theirs: Any) -> None:
    policy = pytest.importorskip("mistral_common.tokens.tokenizers.base").SpecialTokenPolicy.IGNORE
    assert ours.vocab_size == theirs.n_words == 131_072
    for token in range(1000, ours.vocab_size):
        assert ours.bytes_of(token) == theirs.id_to_byte_piece(token, policy), f"token {token}"
    assert {ours.bytes_of(token) for token in range(1000)} == {b""}


def test_special_tokens_have_the_names_mistral_common_gives_them(ours: Tekken, theirs: Any) -> None:
    assert list(ours.specials) == [theirs.id_to_piece(token) for token in range(1000)]


@pytest.mark.parametrize("seed", range(3))
def test_random_ids_streamed_byte_by_byte_equal_the_text_of_mistral_common(
    ours: Tekken, theirs: Any, seed: int
) -> None:
    tokens = random.Random(seed).choices(range(1000, ours.vocab_size), k=2000)
    expected = theirs.decode(tokens)
    characters = Characters()
    streamed = [characters.push(bytes([byte])) for token in tokens for byte in ours.bytes_of(token)]
    assert "".join(streamed) + characters.flush() == ours.decode(tokens) == expected


def test_random_ids_among_special_ones_equal_the_text_of_mistral_common(ours: Tekken, theirs: Any) -> None:
    """Whole characters only: mistral-common decodes from one special token to the next, we over them."""
    whole = [t for t in range(1000, ours.vocab_size) if "\ufffd" not in ours.decode([t])]
    tokens = [pick.choice(ids) for pick in [random.Random(0)] for ids in [whole, range(1000)] * 1000]
    assert ours.decode(tokens) == theirs.decode(tokens)


def test_the_published_check_value_holds(ours: Tekken) -> None:
    assert ours.decode([131_071]) == "后汉书"
    assert ours.decode([1362, 19135, 1046]) == " I spoke."


def test_characters_survive_special_tokens_between_their_bytes(ours: Tekken) -> None:
    first, second = ("é".encode()[n] + 1000 for n in range(2))
    assert ours.decode([first, 32, 33, second]) == "é"


def test_the_audio_block_is_flat(ours: Tekken) -> None:
    assert ours.audio["streaming_n_left_pad_tokens"] == 32
    assert ours.audio["hop_length"] == 160


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tekken = load_tekken(write(tmp_path, made_up_tekken(VOCAB, SPECIALS)))
    for token in (-1, VOCAB):
        with pytest.raises(ConfigError, match=f"token {token} is outside the vocabulary of {VOCAB}"):
            tekken.bytes_of(token)


def test_special_tokens_that_the_file_leaves_out_are_filled_in(tmp_path: Path) -> None:
    content = made_up_tekken(VOCAB, SPECIALS)
    del content["special_tokens"], content["audio"]
    tekken = load_tekken(write(tmp_path, content))
    assert tekken.specials[:2] == ("<SPECIAL_0>", "<SPECIAL_1>")
    assert not tekken.audio


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileAbsent, match=r"no such file; tekken\.json comes with the model"):
        load_tekken(tmp_path / "tekken.json")


def changed(path: str, value: Any) -> Any:
    """A made-up tekken.json with the value at a dotted path replaced; None removes it."""
    content: Any = made_up_tekken(VOCAB, SPECIALS)
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    inner[int(last) if last.isdigit() else last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("config", None, "'config' is missing"),
        ("vocab", {}, "vocab should be a list"),
        ("vocab", [], "default_vocab_size should be"),
        ("special_tokens", 3, "special_tokens should be a list"),
        ("config.default_vocab_size", 1 << 60, "default_vocab_size should be a whole number from 64 to 400"),
        ("config.default_vocab_size", "400", "found '400'"),
        ("config.default_num_special_tokens", -1, "default_num_special_tokens should be"),
        ("config.default_num_special_tokens", 1 << 40, "default_num_special_tokens should be"),
        ("vocab.7.rank", 8, r"vocab\[7\] should be an object with rank 7"),
        ("vocab.7", None, r"vocab\[7\] should be an object"),
        ("vocab.7.token_bytes", 7, r"vocab\[7\]"),
        ("vocab.7.token_bytes", "!!!!", r"vocab\[7\]: token_bytes should be base64"),
        ("vocab.7.token_bytes", "é", "should be base64"),
        ("vocab.7.token_bytes", "BwcH=", "should be base64"),
        ("vocab.300.token_bytes", "", "should spell 1 to 4096 bytes, spells 0"),
        ("vocab.7.token_bytes", "AA==", "single bytes"),
        ("special_tokens.5.rank", 64, r"special_tokens\[5\]: rank should be"),
        ("special_tokens.5.token_str", "<s>", "'<s>' appears twice"),
        ("special_tokens.5", 5, r"special_tokens\[5\]: 'rank' is missing"),
        ("audio", 5, "audio should be an object"),
    ],
)
def test_a_damaged_file_is_refused_with_its_reason(
    tmp_path: Path, path: str, value: Any, reason: str
) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        load_tekken(write(tmp_path, changed(path, value)))
    assert "tekken.json: " in str(caught.value)


def test_a_small_file_that_claims_many_special_tokens_is_refused_as_fast_as_any(tmp_path: Path) -> None:
    """Two of the same name at the end of 300,000: comparing each with each would take an hour."""
    count = 300_000
    content = changed("config.default_num_special_tokens", count)
    content["config"]["default_vocab_size"] = count
    content["special_tokens"] = [{"rank": count - n, "token_str": "x"} for n in (1, 2)]
    with pytest.raises(FormatError, match="special token 'x' appears twice"):
        load_tekken(write(tmp_path, content))


ABSURD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 1 << 70), st.floats(), st.text(max_size=8),
    st.just([]), st.just({}), st.just([{}] * 3),
)  # fmt: skip


@examples(max_examples=50, deadline=None)
@given(
    path=st.sampled_from([
        "config", "config.default_vocab_size", "config.default_num_special_tokens", "vocab", "vocab.0",
        "vocab.0.rank", "vocab.9.token_bytes", "special_tokens", "special_tokens.3", "special_tokens.3.rank",
        "special_tokens.3.token_str", "audio", "audio.audio_encoding_config",
    ]),
    value=ABSURD,
)  # fmt: skip
def test_any_value_anywhere_is_a_vocabulary_or_refused(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: Any
) -> None:
    file = write(tmp_path_factory.mktemp("absurd"), changed(path, value))
    try:
        tekken = load_tekken(file)
    except FormatError as reason:
        assert str(reason).startswith(f"{file}: ") and len(str(reason)) < 400
    else:
        assert tekken.vocab_size <= VOCAB


@examples(max_examples=30, deadline=None)
@given(cut=st.floats(0, 0.999), junk=st.binary(max_size=8))
def test_truncation_and_junk_are_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: float, junk: bytes
) -> None:
    text = json.dumps(made_up_tekken(VOCAB, SPECIALS)).encode()
    path = tmp_path_factory.mktemp("junk") / "tekken.json"
    path.write_bytes(text[: int(len(text) * cut)] + junk)
    with pytest.raises(FormatError):
        load_tekken(path)
