"""Every example runs as it stands and says what it should; the recordings are what their manifest says."""

from __future__ import annotations

import csv
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.own_stage import Gate
from pipeline import load
from stages import Packet, bind, pcm
from tests import laws
from tests.strategies import speech

ROOT = Path(__file__).parent.parent
AUDIO = ROOT / "examples" / "audio"
DEFAULT = AUDIO / "default.flac"
MOST_LINES = 40
MOST_AUDIO_BYTES = 1_500_000


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def spoken() -> str:
    return next(row["text"] for row in rows(AUDIO / "transcripts.tsv") if row["file"] == DEFAULT.name)


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run a script as `python examples/NAME.py` would, from the root; gives the lines it printed."""

    def run(name: str) -> list[str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [f"examples/{name}.py"])
        runpy.run_path(f"examples/{name}.py", run_name="__main__")
        said = capsys.readouterr()
        assert not said.err
        return said.out.splitlines()

    return run


def test_examples_stay_under_forty_lines() -> None:
    lengths = {path.name: path.read_text().count("\n") for path in (ROOT / "examples").glob("*.py")}
    assert max(lengths.values()) < MOST_LINES, lengths


def test_embed_mel_draws_a_tone_that_climbs(run_example) -> None:
    heights = [line.count("█") for line in run_example("embed_mel")]
    assert len(heights) == 25
    assert heights == sorted(heights)
    assert heights[-1] > 10 * heights[0]


def test_rx_captions_grow_into_the_transcript(run_example, spoken) -> None:
    captions = run_example("rx_captions")
    assert captions[-1] == spoken
    assert all(later.startswith(earlier) for earlier, later in pairwise(captions))


def test_async_captions_bring_every_word_in_order(run_example, spoken) -> None:
    lines = [line.split() for line in run_example("async_captions")]
    assert " ".join(word for _, _, word in lines) == spoken
    assert [float(seconds) for seconds, _, _ in lines] == sorted(float(seconds) for seconds, _, _ in lines)


def test_waveform_puts_every_word_under_its_sound(run_example, spoken) -> None:
    bars, *words = run_example("waveform")
    assert sorted(" ".join(words).split()) == sorted(spoken.split())
    assert max(map(len, words)) <= len(bars)
    assert set(bars) <= set(" ▁▂▃▄▅▆▇█")


def test_own_stage_runs_in_a_graph_that_may_import_it(monkeypatch, capsys, spoken) -> None:
    monkeypatch.chdir(ROOT)
    with load("examples/own_stage.yaml", allow_import=True) as run:
        run.run()
    assert capsys.readouterr().out == spoken + "\n"


def test_own_stage_silences_a_hiss_and_leaves_a_tone() -> None:
    gate = bind(Gate(pcm(16_000), floor_db=-40, hold_ms=100))
    hiss, tone = np.full(16_000, 1e-3, np.float32), np.full(1_000, 0.5, np.float32)
    (packet,) = gate.step(np.concatenate([hiss, tone, hiss]))
    assert isinstance(packet, Packet)
    heard = packet.data[0] != 0
    assert heard.argmax() == len(hiss)
    assert heard.sum() == len(tone) + 1_599  # 100 ms, in which the last loud sample is one


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_own_stage_keeps_the_laws(law, data) -> None:
    law(laws.Case("gate", lambda: Gate(pcm(16_000), hold_ms=20), speech()), data.draw)


@pytest.mark.parametrize("manifest", ["transcripts.tsv", "beyond/transcripts.tsv"])
def test_manifest_names_its_recordings_and_their_licences(manifest: str) -> None:
    table = rows(AUDIO / manifest)
    assert all(list(row) == ["file", "text", "speaker", "source", "licence"] for row in table)
    assert all(all(row.values()) for row in table)
    folder = (AUDIO / manifest).parent
    inside = {path for path in folder.rglob("*.flac") if folder != AUDIO or path.parent.name != "beyond"}
    assert {folder / row["file"] for row in table} == inside


def test_recordings_stay_small() -> None:
    assert sum(path.stat().st_size for path in AUDIO.rglob("*.flac")) < MOST_AUDIO_BYTES


def test_the_default_recording_ships_with_the_graphs() -> None:
    assert (ROOT / "graphs" / "audio" / "default.flac").read_bytes() == DEFAULT.read_bytes()
