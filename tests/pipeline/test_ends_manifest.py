"""Manifests: which recordings, in which order, and what their rows may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.ends.manifest import read_table
from pipeline.errors import SourceError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.wav", "deep/d.flac"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(800, np.float32), 8_000)
    return tmp_path


def test_a_table_is_relative_to_its_folder_and_keeps_its_columns(corpus: Path) -> None:
    lines = ["\ufeffspeaker\tfile\ttext", 'ann\tb.wav\tyes "no"', "", "bob\tdeep/d.flac\t", ""]
    (corpus / "set.tsv").write_text("\r\n".join(lines), "utf-8", newline="")
    rows = read_table(corpus / "set.tsv")
    assert [(row.path, row.label, row.text) for row in rows] == [
        (corpus / "b.wav", "b.wav", 'yes "no"'),
        (corpus / "deep/d.flac", "deep/d.flac", ""),
    ]
    assert rows[0].columns["speaker"] == "ann"


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


def test_a_missing_table_comes_with_a_guess(corpus: Path) -> None:
    (corpus / "set.tsv").write_text("file\n")
    with pytest.raises(SourceError, match=r"did you mean '.*set\.tsv'"):
        read_table(corpus / "sett.tsv")
