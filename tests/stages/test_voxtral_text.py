"""Tokens to text: whole characters, word openings, and the times of words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.tools.weights import made_up_tekken
from stages import ConfigError, Packet, Port, Span, Text
from stages.voxtral.config import BOS, STREAMING_PAD, STREAMING_WORD
from stages.voxtral.names import open_checkpoint
from stages.voxtral.text import Detokenizer
from tests.tiny import SPECIALS, TINY, tiny_checkpoint

HOP, DELAY = 1280, 6 * 1280
EOS = 2


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Detokenizer:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return Detokenizer(Port("tokens", 16_000, HOP, 1, "device", DELAY), open_checkpoint(folder))


def spelt(word: str) -> list[int]:
    """One token per byte: the vocabulary opens with the single bytes."""
    return [SPECIALS + byte for byte in word.encode()]


def said(text: Detokenizer, tokens: list[int], start: int = 0) -> list[Text]:
    """What `tokens` say, fed one by one from sample `start` on, and what the flush adds."""
    state, packets = text.open(), []
    for n, token in enumerate(tokens):
        span = Span(start + n * HOP, start + (n + 1) * HOP)
        packets += text.step(state, Packet(np.array([[token]], np.int32), (span,)))
    return [piece for packet in packets + text.flush(state) for piece in packet.data]


def frame(n: int) -> Span:
    """The audio that the token at position `n` speaks of."""
    return Span(n * HOP - DELAY, (n + 1) * HOP - DELAY)


def test_a_piece_has_the_time_of_its_word_s_marker_less_the_delay(text: Detokenizer) -> None:
    ok, a = ([STREAMING_WORD, *spelt(word)] for word in (" ok", " a"))
    pieces = said(text, [STREAMING_PAD] * 8 + ok + [STREAMING_PAD] + a)
    assert [(p.text, p.word, p.span) for p in pieces] == [
        (" ", True, frame(8)), ("o", False, frame(8)), ("k", False, frame(8)),
        (" ", True, frame(13)), ("a", False, frame(13)),
    ]  # fmt: skip


def test_words_that_share_a_marker_are_told_apart_by_their_space(text: Detokenizer) -> None:
    pieces = said(text, [STREAMING_WORD, *spelt(" a b")])
    assert [p.text for p in pieces if p.word] == [" ", " "]
    assert {p.span for p in pieces} == {frame(0)}


def test_a_word_without_a_marker_has_its_own_time_and_not_that_of_the_word_before(text: Detokenizer) -> None:
    pieces = said(text, [STREAMING_WORD, *spelt(" a"), *[STREAMING_PAD] * 20, *spelt(" b")])
    assert [(p.text, p.word, p.span) for p in pieces[2:]] == [(" ", True, frame(23)), ("b", False, frame(24))]


def test_words_without_spaces_open_at_their_markers(text: Detokenizer) -> None:
    pieces = said(text, [STREAMING_WORD, *spelt("后"), *spelt("汉"), STREAMING_WORD, *spelt("书")])
    assert [(p.text, p.word, p.span) for p in pieces] == [
        ("后", True, frame(0)), ("汉", False, frame(0)), ("书", True, frame(7)),
    ]  # fmt: skip


@pytest.mark.parametrize("between", [STREAMING_WORD, STREAMING_PAD, EOS, BOS])
def test_a_character_survives_what_comes_between_its_bytes(text: Detokenizer, between: int) -> None:
    head, *tail = spelt("é")
    assert "".join(map(str, said(text, [head, between, *tail]))) == "é"


def test_a_stream_that_ends_within_a_character_says_so(text: Detokenizer) -> None:
    *_, last = said(text, [STREAMING_WORD, *spelt(" a"), *spelt("书")[:2]])
    assert (last.text, last.word, last.span) == ("\ufffd", False, frame(0))


def test_a_cut_within_a_character_leaves_nothing_to_the_next_utterance(text: Detokenizer) -> None:
    state = text.open()
    text.step(state, Packet(np.array([spelt("é")[:1]], np.int32), (Span(0, HOP),)))
    (end,) = text.flush(state)
    assert [p.text for p in end.data] == ["\ufffd"]
    (again,) = text.step(state, Packet(np.array([spelt("x")], np.int32), (Span(9 * HOP, 10 * HOP),)))
    assert again.data == [Text("x", frame(9), True, spelt("x")[0])]


def test_every_position_has_its_packet_and_special_tokens_an_empty_one(text: Detokenizer) -> None:
    tokens = np.array([[BOS, STREAMING_PAD, EOS, *spelt("x"), SPECIALS - 1]], np.int32)
    packets = text.step(text.open(), Packet(tokens, (Span(0, 5 * HOP),)))
    assert [len(packet.data) for packet in packets] == [0, 0, 0, 1, 0]
    assert [packet.spans for packet in packets] == [(frame(n),) for n in range(5)]


def test_the_blank_run_is_counted_per_lane_and_the_longest_is_shown(text: Detokenizer) -> None:
    state = text.open(2)
    both = (Span(0, 3 * HOP),) * 2
    text.step(state, Packet(np.array([[32, 32, 32], [32, 33, 32]], np.int32), both))
    assert text.gauges(state) == {"blank_run": 3}
    text.flush(state, 0)
    assert text.gauges(state) == {"blank_run": 1}


@pytest.mark.parametrize(
    ("vocab", "specials", "message"),
    [
        (TINY.decoder.vocab, 33, "expected 34 special tokens or more, found 33; is it another model's"),
        (600, 64, "has 600 tokens, but the model's table has 512 rows"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(
    tmp_path: Path, vocab: int, specials: int, message: str
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    checkpoint.tekken.write_text(json.dumps(made_up_tekken(vocab, specials)))
    with pytest.raises(ConfigError, match=message):
        Detokenizer(Port("tokens", 16_000, HOP, 1, "device", DELAY), checkpoint)
