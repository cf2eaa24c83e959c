"""Manifests: which recordings, in which order, and what their rows may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.ends.manifest import ManifestSource, read_table
from pipeline.errors import GraphError, SourceError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.wav", "deep/er/c.wav", "deep/d.flac", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            path.write_text("none")
        else:
            soundfile.write(path, np.zeros(800, np.float32), 8_000)
    return tmp_path


def names(source: ManifestSource) -> list[str]:
    return [row.path.name for row in source.rows()]


def test_a_pattern_finds_files_in_any_folder_in_order(corpus: Path) -> None:
    assert names(ManifestSource(f"{corpus}/**/*.wav")) == ["a.wav", "b.wav", "c.wav"]
    assert names(ManifestSource(f"{corpus}/*.wav")) == ["a.wav", "b.wav"]


def test_a_list_keeps_its_order_and_may_hold_patterns(corpus: Path) -> None:
    source = ManifestSource([corpus / "b.wav", f"{corpus}/deep/*", corpus / "a.wav"])
    assert names(source) == ["b.wav", "d.flac", "a.wav"]


def test_a_table_is_relative_to_its_folder_and_keeps_its_columns(corpus: Path) -> None:
    lines = ["\ufeffspeaker\tfile\ttext", 'ann\tb.wav\tyes "no"', "", "bob\tdeep/d.flac\t", ""]
    (corpus / "set.tsv").write_text("\r\n".join(lines), "utf-8", newline="")
    rows = ManifestSource(corpus / "set.tsv").rows()
    assert [(row.path, row.label, row.text) for row in rows] == [
        (corpus / "b.wav", "b.wav", 'yes "no"'),
        (corpus / "deep/d.flac", "deep/d.flac", ""),
    ]
    assert rows[0].columns["speaker"] == "ann"


def test_sources_are_opened_one_by_one(corpus: Path) -> None:
    lengths = []
    for source in ManifestSource(f"{corpus}/**/*.wav", block_ms=20).sources():
        source.open()
        lengths.append([len(block) for block in source.blocks()])
    assert lengths == [[160] * 5] * 3


def test_a_row_without_its_file_fails_alone(corpus: Path) -> None:
    (corpus / "set.tsv").write_text("file\ngone.wav\nb.wav\n")
    gone, there = ManifestSource(corpus / "set.tsv").sources()
    with pytest.raises(SourceError, match=r"gone\.wav: there is no such file"):
        gone.open()
    there.open()
    there.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "set.tsv:1: expected a header with the column 'file', found \\[\\]"),
        ("path\ttext\n", "set.tsv:1: expected a header with the column 'file', found \\['path', 'text'\\]"),
        ("file\ttext\na.wav\n", "set.tsv:2: expected 2 columns, as above, found 1"),
        ("file\ttext\n\tyes\n", "set.tsv:2: expected a path in the column 'file', found ''"),
        ("file\n" + "x" * 200_000, "set.tsv:2: field larger than field limit"),
    ],
)
def test_a_wrong_table_is_told_by_line(corpus: Path, text: str, complaint: str) -> None:
    (corpus / "set.tsv").write_text(text)
    with pytest.raises(SourceError, match=complaint):
        read_table(corpus / "set.tsv")


def test_a_table_that_is_no_text_is_told(corpus: Path) -> None:
    (corpus / "set.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="cannot read it as UTF-8 text"):
        read_table(corpus / "set.tsv")


def test_a_pattern_without_a_match_is_told(corpus: Path) -> None:
    with pytest.raises(SourceError, match="no file matches this pattern"):
        ManifestSource(f"{corpus}/*.mp3").rows()


def test_a_missing_table_comes_with_a_guess(corpus: Path) -> None:
    (corpus / "set.tsv").write_text("file\n")
    with pytest.raises(SourceError, match=r"did you mean '.*set\.tsv'"):
        ManifestSource(corpus / "sett.tsv").rows()


def test_senseless_options_are_refused_before_any_row() -> None:
    with pytest.raises(GraphError):
        ManifestSource("*.wav", pace="soon")
