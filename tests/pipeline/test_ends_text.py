"""Sinks for text: lines, JSON, subtitles, and what happens when nobody can take any more."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ends.jsonl import Jsonl
from pipeline.ends.lines import Lines
from pipeline.ends.subtitles import Subtitles
from pipeline.errors import GraphError, SinkClosed, SinkError
from stages.packet import Packet, Span, Text
from stages.stage import Port

PORT = Port("text", 16_000, 1_280, 0)
TOKEN_MS = 80


def said(text: str, at_ms: int, *, word: bool = True, token: int | None = None) -> Packet:
    """One piece heard to end at `at_ms`."""
    span = Span((at_ms - TOKEN_MS) * 16, at_ms * 16)
    return Packet([Text(text, span, word, token)], (span,))


def spoken(sentence: str, every_ms: int = 400, start_ms: int = 400) -> list[Packet]:
    return [said(f" {word}", start_ms + n * every_ms) for n, word in enumerate(sentence.split())]


def run(sink: Lines | Jsonl | Subtitles, script: list[Packet | int]) -> None:
    """Play packets, and cuts given as samples, into `sink`."""
    sink.open(PORT)
    for step in script:
        if isinstance(step, int):
            sink.cut(step)
        else:
            sink.write(step, emitted_s=step.spans[0].stop / 16_000 + 0.48 if step.spans[0] else None)
    sink.close()
    sink.close()


def lines(script: list[Packet | int]) -> str:
    with redirect_stdout(io.StringIO()) as out:
        run(Lines(), script)
    return out.getvalue()


def test_lines_are_the_text_with_one_newline_at_the_end() -> None:
    assert lines([*spoken("one two three")]) == "one two three\n"


def test_a_cut_ends_a_line_and_the_next_begins_without_space() -> None:
    assert lines([*spoken("one two"), 16_000, 17_000, *spoken("three"), 32_000]) == "one two\nthree\n"


def test_nothing_said_is_nothing_written() -> None:
    assert lines([]) == lines([16_000]) == lines([said(" ", 80), said("", 160)]) == ""


def test_pieces_are_readable_as_soon_as_they_are_written(tmp_path: Path) -> None:
    sink = Lines(path=tmp_path / "talk.txt")
    sink.open(PORT)
    sink.write(said(" hel", 80))
    assert (tmp_path / "talk.txt").read_text() == "hel"
    sink.write(said("lo", 160, word=False))
    assert (tmp_path / "talk.txt").read_text() == "hello"
    sink.close()
    assert (tmp_path / "talk.txt").read_text() == "hello\n"


def test_what_the_terminal_cannot_say_is_replaced_and_not_fatal() -> None:
    raw = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(raw, encoding="ascii", write_through=True)):
        run(Lines(), [said(" café", 80)])
        assert raw.getvalue() == b"caf?\n"


def objects(script: list[Packet | int], path: Path, **options: str) -> list[dict[str, object]]:
    run(Jsonl(path=path, **options), script)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_json_gives_words_with_their_times(tmp_path: Path) -> None:
    script = [said(" hel", 400, token=7), said("lo", 480, word=False, token=8), said(" you", 960, token=9)]
    assert objects([*script], tmp_path / "a") == [
        {"text": "hello", "start": 0.32, "stop": 0.48, "token": [7, 8], "emitted": 0.96},
        {"text": "you", "start": 0.88, "stop": 0.96, "token": [9], "emitted": 1.44},
    ]


def test_json_pieces_do_not_wait_for_their_word(tmp_path: Path) -> None:
    sink = Jsonl(path=tmp_path / "a", each="piece")
    sink.open(PORT)
    sink.write(said(" hel", 400))
    assert json.loads((tmp_path / "a").read_text()) == {
        "text": " hel",
        "start": 0.32,
        "stop": 0.4,
        "token": [],
        "emitted": None,
    }
    sink.close()


def test_a_cut_completes_a_word(tmp_path: Path) -> None:
    sink = Jsonl(path=tmp_path / "a")
    sink.open(PORT)
    sink.write(said(" you", 400))
    assert (tmp_path / "a").read_text() == ""
    sink.cut(6_400)
    assert json.loads((tmp_path / "a").read_text())["text"] == "you"
    sink.close()


def test_json_units_are_words_or_pieces() -> None:
    with pytest.raises(GraphError, match="each is one of word, piece, not 'line'"):
        Jsonl(each="line")


Parts = list[tuple[str, int, bool]]  # what is said, how many ms later, whether it opens a word
pieces = st.lists(st.tuples(st.text(max_size=12), st.integers(0, 1_500), st.booleans()), max_size=60)


def timed(parts: Parts) -> list[Packet | int]:
    at_ms, script = TOKEN_MS, []
    for text, gap_ms, word in parts:
        at_ms += gap_ms
        script.append(said(text, at_ms, word=word))
    return [*script]


@given(parts=pieces)
def test_every_json_line_is_valid_whatever_is_said(parts: Parts) -> None:
    with redirect_stdout(io.StringIO()) as out:
        run(Jsonl(), timed(parts))
    rows = [json.loads(line) for line in out.getvalue().split("\n") if line]
    joined = "".join(row["text"] for row in rows)
    assert "".join(joined.split()) == "".join("".join(text for text, _, _ in parts).split())
    assert all(row["start"] <= row["stop"] <= row["emitted"] for row in rows)


MOMENT = r"(\d\d):(\d\d):(\d\d)[.,](\d{3})"
CUE = re.compile(rf"(\d+)\n{MOMENT} --> {MOMENT}\n((?:.+\n){{1,2}})\n")


def cues(text: str) -> list[tuple[int, int, str]]:
    """(start ms, stop ms, text) of each cue; the whole of `text` must be cues, numbered from 1."""
    body = text.removeprefix("WEBVTT\n\n")
    found = list(CUE.finditer(body))
    assert "".join(match.group(0) for match in found) == body
    assert [int(match.group(1)) for match in found] == list(range(1, len(found) + 1))
    return [(_ms(*m.groups()[1:5]), _ms(*m.groups()[5:9]), m.group(10).rstrip("\n")) for m in found]


def _ms(hours: str, minutes: str, seconds: str, rest: str) -> int:
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(rest)


def subtitles(script: list[Packet | int], **options: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        run(Subtitles(**options), script)
    return out.getvalue()


def test_srt_is_what_players_read() -> None:
    text = subtitles([*spoken("Good morning everyone."), *spoken("Welcome.", start_ms=4_000)])
    assert text.split("\n\n") == [
        "1\n00:00:00,020 --> 00:00:01,700\nGood morning everyone.",
        "2\n00:00:03,620 --> 00:00:04,500\nWelcome.",
        "",
    ]


def test_vtt_escapes_what_it_reserves() -> None:
    text = subtitles([said(" <b>", 400), said(" &", 800), said(" -->", 1_200)], format="vtt")
    assert text == "WEBVTT\n\n1\n00:00:00.020 --> 00:00:01.700\n&lt;b&gt; &amp; --&gt;\n\n"


def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    run(Subtitles(path=tmp_path / "talk.VTT"), [])
    run(Subtitles(path=tmp_path / "talk.srt"), [])
    assert (tmp_path / "talk.VTT").read_text() == "WEBVTT\n\n"
    assert (tmp_path / "talk.srt").read_text() == ""


def test_other_subtitle_formats_are_refused() -> None:
    with pytest.raises(GraphError, match="srt, vtt, not 'ass'"):
        Subtitles(format="ass")


@pytest.mark.parametrize("form", ["srt", "vtt"])
@given(parts=pieces, cuts=st.sets(st.integers(0, 60)))
def test_cues_are_valid_whatever_is_said(form: str, parts: Parts, cuts: set[int]) -> None:
    script = timed(parts)
    for place in sorted(cuts, reverse=True):
        script.insert(place, 0)
    found = cues(subtitles(script, format=form))
    edges = [edge for start, stop, _ in found for edge in (start, stop)]
    assert edges == sorted(edges) and all(start < stop for start, stop, _ in found)
    assert all(len(line) <= 42 for _, _, text in found for line in _plain(text, form).split("\n"))


def _plain(text: str, form: str) -> str:
    plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return plain if form == "vtt" else text


@given(every_ms=st.integers(160, 600), count=st.integers(1, 80))
def test_cues_of_steady_speech_are_short_and_lose_no_word(every_ms: int, count: int) -> None:
    words = [f"word{n}" for n in range(count)]
    found = cues(subtitles([*spoken(" ".join(words), every_ms)]))
    assert " ".join(text for _, _, text in found).split() == words
    assert all(stop - start <= 6_000 + 500 for start, stop, _ in found)  # half a second to linger


def test_an_interrupted_run_leaves_whole_cues(tmp_path: Path) -> None:
    sink = Subtitles(path=tmp_path / "talk.srt")
    sink.open(PORT)
    for packet in spoken("one two three. four five six. seven eight nine ten. eleven"):
        sink.write(packet)
        cues((tmp_path / "talk.srt").read_text())
    written = [text for _, _, text in cues((tmp_path / "talk.srt").read_text())]
    assert written == ["one two three.", "four five six."]
    sink.close()


MAKERS: list[Callable[[str], Lines | Jsonl | Subtitles]] = [
    lambda path: Lines(path=path),
    lambda path: Jsonl(path=path, each="piece"),
    lambda path: Subtitles(path=path, format="vtt"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_missing_folder_is_a_sink_error_with_its_cure(
    make: Callable[[str], Lines | Jsonl | Subtitles], tmp_path: Path
) -> None:
    with pytest.raises(SinkError, match=r"out: cannot create it \(no such .*\); create the folder .*/no'"):
        run(make(str(tmp_path / "no" / "out")), [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("make", MAKERS)
def test_a_full_disk_is_a_sink_error_with_its_cure(make: Callable[[str], Lines | Jsonl | Subtitles]) -> None:
    sink = make("/dev/full")
    with pytest.raises(SinkError, match=r"/dev/full: cannot write it \(no space left .*\); free some space"):
        run(sink, [said(" one", 400)])
    sink.close()


CHILD = """
import sys
from pipeline.ends.lines import Lines
from pipeline.errors import SinkError
from stages.packet import Packet, Span, Text
from stages.stage import Port
sink = Lines()
sink.open(Port("text", 16000, 1280, 0))
try:
    sys.stdin.readline()
    for n in range(100000):
        sink.write(Packet([Text(" word", Span(n, n + 1))], (Span(n, n + 1),)))
except SinkError as error:
    print(type(error).__name__, error.exit_code, error, file=sys.stderr)
sink.close()
"""


def child(stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def test_a_closed_standard_output_ends_quietly() -> None:
    writer = child(subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    writer.stdout = None
    _, complaint = writer.communicate("\n")
    assert complaint == "SinkClosed 0 standard output: the reader has gone\n"
    assert writer.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_output_is_told_once() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer = child(full)
    os.close(full)
    _, complaint = writer.communicate("\n")
    assert complaint.startswith("SinkError 1 standard output: cannot write it (no space left on device)")
    assert complaint.count("\n") == 1 and writer.returncode == 0


def test_a_closed_sink_is_a_kind_of_sink_error() -> None:
    assert issubclass(SinkClosed, SinkError) and SinkClosed.exit_code == 0
