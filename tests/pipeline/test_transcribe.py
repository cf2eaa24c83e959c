"""Recordings to text: order, formats and folders; a bad recording stops no other, a bad output stops all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from pipeline.errors import GraphError, SinkClosed, SinkError, SourceError
from pipeline.tools.transcribe import FORMATS, transcribe_files

MS = 0.002  # seconds: JSON rounds to milliseconds


@pytest.fixture(scope="module")
def clips(tmp_path_factory, restless) -> list[str]:
    """Three recordings, the first the longest: with several lanes it is the last to end."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{name}.wav" for name in ("one", "two", "three")]
    for seed, (path, seconds) in enumerate(zip(paths, (4.0, 1.0, 2.0), strict=True)):
        soundfile.write(path, restless(seconds, seed), 16_000, subtype="FLOAT")
    return [str(path) for path in paths]


def objects(text: str) -> list[dict]:
    """JSON lines; a random model says things that `splitlines` takes for ends of lines."""
    return [json.loads(line) for line in text.split("\n") if line]


def lines(run, files) -> str:
    """What the library's own call makes of `files`, one below the other."""
    return "".join(f"{run.transcribe(file)}\n" for file in files)


def written(run, files, format, target: Path) -> str:
    assert transcribe_files(run, files, format, str(target)) == []
    return target.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", FORMATS)
def test_lanes_do_not_change_what_is_written(tiny_run, clips, tmp_path, format):
    alone = written(tiny_run(), clips, format, tmp_path / "alone")
    together = written(tiny_run("lanes: {count: 3}\n"), clips, format, tmp_path / "together")
    if format == "jsonl":  # when a word came out depends on who shared the step
        alone, together = ([word | {"emitted": None} for word in objects(text)] for text in (alone, together))
    assert together == alone != ""


def test_txt_is_a_line_for_each_recording_in_the_order_named(tiny_run, clips, tmp_path):
    run = tiny_run()
    assert written(run, clips[::-1], "txt", tmp_path / "out") == lines(run, clips[::-1])


def test_json_of_one_recording_is_an_object_with_timed_words(tiny_run, clips, tmp_path):
    run = tiny_run()
    found = json.loads(written(run, clips[:1], "json", tmp_path / "out"))
    assert list(found) == ["file", "text", "duration_s", "words"]
    assert found["file"] == clips[0] and found["duration_s"] == 4.0
    assert found["text"] == " ".join(word["text"] for word in found["words"]) != ""
    pieces = run.transcribe(clips[0]).pieces
    assert abs(found["words"][0]["start"] - pieces[0].span.start / 16_000) < MS
    assert all(word["stop"] >= word["start"] + 0.08 - MS for word in found["words"])


def test_json_of_several_recordings_is_a_list_of_those_objects(tiny_run, clips, tmp_path):
    run = tiny_run()
    together = json.loads(written(run, clips, "json", tmp_path / "all"))
    assert together == [json.loads(written(run, [clip], "json", tmp_path / "one")) for clip in clips]


def test_jsonl_names_the_recording_only_where_there_are_several(tiny_run, clips, tmp_path):
    run = tiny_run()
    one = objects(written(run, clips[:1], "jsonl", tmp_path / "one"))
    two = objects(written(run, clips[:2], "jsonl", tmp_path / "two"))
    assert not any("file" in word for word in one)
    assert [word.pop("file") for word in two if word["file"] == clips[0]] == [clips[0]] * len(one)
    assert two[: len(one)] == one and {word["file"] for word in two[len(one) :]} == {clips[1]}


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles_in_one_file_run_on_as_if_played_in_a_row(tiny_run, clips, tmp_path, format):
    cues = written(tiny_run(), clips, format, tmp_path / "out").split("\n\n")
    times = [cue.split("\n")[1] for cue in cues if " --> " in cue]
    assert times == sorted(times)
    assert times[-1] > "00:00:05", "the third recording begins after the five seconds of the first two"
    assert [cue.split("\n")[0] for cue in cues if " --> " in cue] == [str(n + 1) for n in range(len(times))]


def test_a_folder_gets_one_file_per_recording(tiny_run, clips, tmp_path):
    run = tiny_run("lanes: {count: 2}\n")
    assert transcribe_files(run, clips, "txt", f"{tmp_path / 'texts'}/") == []
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["one.txt", "three.txt", "two.txt"]
    assert (tmp_path / "texts" / "two.txt").read_text() == lines(run, clips[1:2])


def test_recordings_that_would_share_a_file_of_a_folder_are_refused(tiny_run, tmp_path):
    with pytest.raises(GraphError, match=r"'a/talk\.wav' and 'b/talk\.flac' would both .*talk\.srt"):
        transcribe_files(tiny_run(), ["a/talk.wav", "b/talk.flac"], "srt", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tiny_run):
    with pytest.raises(GraphError, match="format is one of txt, srt"):
        transcribe_files(tiny_run(), [], "docx")


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_missing_recording_is_reported_and_the_others_are_written(tiny_run, clips, tmp_path, lanes):
    run = tiny_run(f"lanes: {{count: {lanes}}}\n")
    target = tmp_path / "out"
    failed = transcribe_files(run, ["nowhere.wav", clips[0], "nothing.wav", clips[1]], "txt", str(target))
    assert [name for name, _ in failed] == ["nowhere.wav", "nothing.wav"]
    assert all(isinstance(error, SourceError) for _, error in failed)
    assert target.read_text() == lines(run, clips[:2])


def test_what_was_recognised_before_a_recording_broke_off_is_written(tiny_run, clips, tmp_path):
    run = tiny_run()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path(clips[0]).read_bytes()[: 44 + 4 * 16_000 * 3])
    (name, error), *others = transcribe_files(run, [str(cut), clips[1]], "txt", str(tmp_path / "out"))
    assert name == str(cut) and "cut short" in str(error) and not others
    text, rest = (tmp_path / "out").read_text(), lines(run, clips[1:2])
    assert text.endswith(rest) and text[:20] == lines(run, clips[:1])[:20]


def test_an_output_that_cannot_be_written_ends_the_run_with_one_complaint(tiny_run, clips, tmp_path):
    target = tmp_path / "no" / "such" / "folder.txt"
    ((name, error),) = transcribe_files(tiny_run(), clips, "txt", str(target))
    assert name == str(target) and isinstance(error, SinkError) and "create the folder" in str(error)


def test_a_reader_that_goes_away_ends_the_run_without_complaint(tiny_run, clips, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise OSError

        def isatty(self):
            return False

    monkeypatch.setattr("sys.stdout", Gone())
    ((_, error),) = transcribe_files(tiny_run(), clips, "txt")
    assert isinstance(error, SinkClosed)


def test_nothing_but_text_reaches_standard_output(tiny_run, clips, capsys):
    run = tiny_run()
    assert transcribe_files(run, clips[:1]) == []
    out, err = capsys.readouterr()
    assert (out, err) == (lines(run, clips[:1]), "")


def test_the_graph_says_how_recordings_are_read(tiny_run, tmp_path, restless, clips):
    raw = tmp_path / "raw.pcm"
    soundfile.write(raw, restless(4.0, 0), 16_000, format="RAW", subtype="FLOAT")
    run = tiny_run("source: {file: {path: x, raw_rate: 16kHz, raw_format: f32le}}\n")
    assert written(run, [str(raw)], "txt", tmp_path / "out") == lines(tiny_run(), clips[:1])
