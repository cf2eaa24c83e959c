"""Error rates: counted as published, summed as promised, and honest about what was not heard."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ends.manifest import Row
from pipeline.errors import GraphError, PipelineError, SourceError
from pipeline.tools.evaluate import Evaluation, evaluate_manifest, read_manifest
from pipeline.tools.score import Count, Score, Scorer

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

SPELT = ["one five", "fifteen", "zero two", "o two", "five five three five", "a", "eight", "n l n s", "i m"]
WORDS = ["a", "b", "eight", "five", "fifteen", "o", "oh", "zero", "i'd", "latte", "June"]
words = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def scored(reference: str, hypothesis: str, file: str = "a/x.wav", seconds: float = 2.0):
    return Scorer()(file, reference, hypothesis, seconds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, restless) -> Path:
    """Recordings below two folders and beside the manifest."""
    root = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(("a/one.wav", "a/two.wav", "b/three.wav", "four.wav")):
        (root / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / name, restless(1.0 + seed / 2, seed), 16_000)
    return root


def manifest(folder: Path, *rows: str, header: str = "file\ttext\tspeaker", name: str = "rows.tsv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_errors_are_those_of_the_textbook():
    found = scored("n l n s one seventy five", "n l s one seven five oh").words
    assert found == Count(hits=5, substitutions=1, deletions=1, insertions=1)
    assert found.rate == 3 / 7


def test_characters_are_counted_with_their_spaces():
    assert scored("a b", "a c").characters == Count(hits=2, substitutions=1)


@pytest.mark.parametrize("reference", SPELT)
@pytest.mark.parametrize("hypothesis", SPELT)
def test_the_basic_normaliser_hides_no_error_between_spelt_words(reference, hypothesis):
    assert (scored(reference, hypothesis).words.errors == 0) == (reference == hypothesis)


def test_the_basic_normaliser_forgives_case_and_punctuation_on_either_side():
    assert scored("N-L, one; June!", "n l one june").words.errors == 0
    assert scored("n l one june", "N-L, one; June!").words.errors == 0


def test_the_english_normaliser_takes_digits_for_spelt_numbers():
    assert Scorer("english")("x", "one hundred and five", "105", 1.0).words.errors == 0
    assert Scorer("basic")("x", "one hundred and five", "105", 1.0).words.errors == 4


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(GraphError, match="normalizer is one of basic, english"):
        Scorer("german")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(words, words), max_size=6))
def test_the_sum_of_recordings_is_the_score_of_the_set(pairs):
    one = [scored(reference, hypothesis) for reference, hypothesis in pairs]
    total = Score.of(one)
    assert total.words.reference == sum(len(s.reference.split()) for s in one)
    assert total.words.hits + total.words.substitutions + total.words.insertions == sum(
        len(s.hypothesis.split()) for s in one
    )
    assert total.right == sum(s.reference == s.hypothesis for s in one)
    assert total.words.errors >= 0 and (total.words.errors == 0) == (total.right == total.recordings)


def test_words_made_up_in_silence_are_errors():
    assert scored("", "go stop").words == Count(insertions=2)
    assert Score.of([scored("", "go")]).as_json()["wer"] == 1.0
    assert Score.of([scored("", "")]).as_json()["wer"] == 0.0


def test_json_has_rates_as_fractions_on_top_and_per_folder():
    rows = (scored("a b", "a c"), scored("a b", "a b", "b/y.wav"), scored("go", "go", "z.wav"))
    found = json.loads(json.dumps(Evaluation(rows, 3.0, "basic").as_json()))
    assert found["wer"] == 0.2 and found["sentence_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert {name: score["wer"] for name, score in found["folders"].items()} == {"a": 0.5, "b": 0.0, ".": 0.0}
    assert found["seconds"] == 6.0 and found["rtf"] == 0.5
    assert (found["substitutions"], found["deletions"], found["insertions"], found["words"]) == (1, 0, 0, 5)


def test_the_table_has_a_row_per_folder_and_one_for_all():
    rows = (scored("a b", "a c"), scored("a b", "a b", "b/y.wav"))
    head, first, second, total, *_ = Evaluation(rows, 3.0, "basic").table().splitlines()
    assert head.split()[:2] == ["WER", "%"]
    rates = dict(line.split()[:2] for line in (first, second, total))
    assert rates == {"a": "50.00", "b": "0.00", "all": "25.00"}
    assert len({len(line) for line in (head, first, second, total)}) == 1


def test_mistakes_show_both_texts_aligned_and_only_where_they_differ():
    rows = (scored("a b c", "a x c"), scored("go", "go", "b/y.wav"))
    name, reference, hypothesis, marks = Evaluation(rows, 1.0, "basic").mistakes().splitlines()
    assert name == "a/x.wav"
    assert (reference.split(), hypothesis.split()) == (["REF:", "a", "b", "c"], ["HYP:", "a", "x", "c"])
    assert marks.index("S") == reference.index("b")
    assert Evaluation(rows[1:], 1.0, "basic").mistakes() == "no mistakes"


def test_every_recording_is_heard_as_transcribe_hears_it(tiny_run, folder):
    run = tiny_run("lanes: {count: 2}\n")
    files = ["a/one.wav", "b/three.wav", "a/two.wav", "four.wav"]
    said = [str(run.transcribe(folder / file)) for file in files]
    rows = read_manifest(manifest(folder, *(f"{file}\ta b\tx" for file in files)))
    found = evaluate_manifest(run, rows, Scorer())
    assert [s.file for s in found.scored] == files
    assert [s.hypothesis for s in found.scored] == [scored("", text).hypothesis for text in said]
    assert list(found.folders) == ["a", "b", ""] and not found.failed and not found.unheard
    assert found.overall.seconds == 1.0 + 2.0 + 1.5 + 2.5


def test_only_keeps_what_is_below_a_folder(folder):
    path = manifest(folder, "a/one.wav\tx\t", "b/three.wav\tx\t", "ab/none.wav\tx\t")
    assert [row.label for row in read_manifest(path, ["a"])] == ["a/one.wav"]
    assert [row.label for row in read_manifest(path, ["b/", "a/one.wav"])] == ["a/one.wav", "b/three.wav"]
    with pytest.raises(SourceError, match="no recording is below 'c'; there are a, b, ab"):
        read_manifest(path, ["c"])


def test_a_recording_that_breaks_off_counts_its_missing_words_and_is_named(tiny_run, folder):
    broken = folder / "a" / "broken.wav"
    broken.write_bytes((folder / "four.wav").read_bytes()[:20_000])
    empty = folder / "a" / "empty.wav"
    empty.write_bytes(b"")
    path = manifest(folder, "a/broken.wav\tgo\t", "a/empty.wav\tone two three\t", "a/one.wav\tgo\t")
    found = evaluate_manifest(tiny_run(), read_manifest(path), Scorer())
    assert [file for file, _ in found.failed] == ["a/broken.wav", "a/empty.wav"]
    assert len(found.scored) == 3 and found.scored[1].words == Count(deletions=3)
    assert "failed: " in found.table() and found.as_json()["failed"][1]["file"] == "a/empty.wav"


def test_an_interrupted_run_leaves_out_what_was_not_heard_to_its_end(tiny_run, folder, tmp_path):
    run, pipe = tiny_run(), tmp_path / "endless.wav"
    os.mkfifo(pipe)

    def speak() -> None:
        with pipe.open("wb") as stream:  # waits for the run to listen
            stream.write((folder / "four.wav").read_bytes()[:20_000])
            stream.flush()
            run.stop()

    speaker = threading.Thread(target=speak)
    speaker.start()
    rows = [Row(pipe, "endless.wav", "go"), Row(folder / "a" / "one.wav", "a/one.wav", "go")]
    found = evaluate_manifest(run, rows, Scorer())
    speaker.join()
    assert (found.scored, found.unheard) == ((), 2)
    assert "2 recordings were not heard" in found.table()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], "file\ttext", r"rows\.tsv:2: expected a recording"),
        (["x.wav"], "file", r"rows\.tsv:1: expected a column 'text' with what was said, found only file"),
        (["x.wav\ty"], "path\ttext", r"rows\.tsv:1: expected a header with the column 'file'"),
        (["x.wav"], "file\ttext", r"rows\.tsv:2: expected 2 columns"),
        (["no.wav\ty", "nor.wav\ty"], "file\ttext", r"2 of 2 recordings are not there: 'no\.wav', 'nor"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_with_its_place(tmp_path, rows, header, message):
    with pytest.raises(SourceError, match=message):
        read_manifest(manifest(tmp_path, *rows, header=header))


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(
        PipelineError, match=r"the package jiwer is missing; pip install 'headrace\[evaluate\]'"
    ):
        Scorer()
