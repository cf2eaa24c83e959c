"""The measurement of a processor, every line of it, on sizes that take moments: no figure here is a speed."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kernels import BackendMissing
from kernels.cpu.team import cores
from pipeline.cli import main
from pipeline.opening import open_chosen
from pipeline.tools import cpu_bench, cpu_words, ggml_peer, kernel_bench, machine
from pipeline.tools.card_run import TIME_UP, Absent
from pipeline.tools.cpu_bench import PARTS, bench_cpu
from pipeline.tools.cpu_clock import Patience, Spread, cycling, in_turns, timed
from pipeline.tools.cpu_figures import CPU, HEAD, CpuReport, Line, Wanted
from pipeline.tools.cpu_products import shapes
from pipeline.tools.cpu_run import RECORDINGS, CpuRun, CpuSweep
from pipeline.tools.ggml_peer import Ggml
from pipeline.tools.records import FILE
from stages.voxtral.config import OFFICIAL, Audio, Config, Decoder, Encoder

SMALL = Config(
    Audio(),
    Encoder(
        dim=64, layers=1, heads=1, kv_heads=1, head_dim=64, hidden_dim=96, window=10, rope_theta=1e6,
        norm_eps=1e-5,
    ),
    Decoder(
        dim=64, layers=1, heads=4, kv_heads=2, head_dim=64, hidden_dim=96, window=20, rope_theta=1e6,
        norm_eps=1e-5, vocab=128, ada_dim=32,
    ),
    downsample=4,
)  # fmt: skip
ONCE = Patience(rounds=2, least=1, seconds=0.0)
TICKS = 2 * (1 + (cores() > 1))
FIGURES = 1 + 2 * len(shapes(SMALL)) + 1 + TICKS + 2 + 1


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Where the backend does not open there is nothing to measure."""
    try:
        return open_chosen("cpu")
    except BackendMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> CpuSweep:
    """One recording, and weights of which two fill the pool."""
    manifest = tmp_path_factory.mktemp("corpus") / "one.tsv"
    file = os.path.relpath(RECORDINGS.parent / "default.flac", manifest.parent)
    manifest.write_text(f"file\ttext\n{file}\ti want a double shot\n")
    sizes = {"position": 8, "pool_bytes": 1 << 19, "window_bytes": 1 << 18, "live_s": 0.4}
    return CpuSweep(SMALL, recordings=manifest, **sizes)


@pytest.fixture(scope="module")
def report(sweep) -> CpuReport:
    with machine.one_blas_thread() as kept:
        if not kept:
            pytest.skip(cpu_words.THREADS)
        return bench_cpu(600.0, {}, sweep, ONCE)


def spread(best: float, median: float = 0.0) -> Spread:
    return Spread(best, median or best, 3)


def test_every_figure_is_taken_or_says_why_not(report):
    assert len(report.lines) == FIGURES
    assert len({line.figure for line in report.lines}) == FIGURES
    left_out = {line.figure: line.why for line in report.lines if line.why}
    assert all(name.endswith("against ggml") for name in left_out), left_out
    for line in report.lines:
        if not line.why:
            assert line.ours is not None and line.ours.samples > 0
            if line.unit == "ms":
                assert 0 < line.ours.best <= line.ours.median < 100
            assert line.ratio is None or math.isfinite(line.ratio)
            assert (line.theirs is None) == (not line.beside)


def test_every_figure_that_is_wanted_is_judged(report):
    judged = [line for line in report.lines if line.wanted]
    assert len(judged) == 2 * len(shapes(SMALL)) + 1 + TICKS // 2 + 2
    verdicts = {line.verdict for line in judged}
    assert verdicts <= {"met", "missed", "not measured"}


def test_the_table_has_a_row_for_every_line_and_names_the_machine(report):
    text = report.markdown()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + FIGURES and {row.count("|") for row in rows} == {len(HEAD) + 1}
    for word in ("- date: ", "- machine: ", "isa ", "activations int8", "numba "):
        assert word in text


def test_the_report_is_json_and_keeps_every_figure(report):
    told = json.loads(json.dumps(report.as_json()))
    assert list(told) == ["about", "figures"] and len(told["figures"]) == FIGURES
    assert all({"best", "median", "samples"} == set(f["ours"]) for f in told["figures"] if "why" not in f)
    floors = [f for f in told["figures"] if "reading" in f]
    assert floors and all(f["ratio"] > 0 and f["ratio_of_medians"] > 0 for f in floors)


def test_the_shapes_are_those_of_the_decoder_and_its_head():
    assert list(shapes(OFFICIAL).items()) == [
        ((131_072, 3072), "head"), ((4096, 3072), "wq"), ((1024, 3072), "wk, wv"), ((3072, 4096), "wo"),
        ((9216, 3072), "w1, w3"), ((3072, 9216), "w2"),
    ]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_spent_budget_leaves_figures_out_and_says_so(sweep, part):
    run = CpuRun(sweep, {}, budget_s=0.0, patience=ONCE)
    part(run)
    taken = [line for line in run.lines if not line.why]
    assert {line.why for line in run.lines} <= {TIME_UP, ""}
    assert len(taken) < len(run.lines) or cores() == 1, "one core has nothing to share"
    assert not [line for line in taken if line.wanted]


def test_what_does_not_fit_the_memory_is_left_out_with_both_sizes(sweep, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 1000)
    run = CpuRun(sweep, {}, patience=ONCE)
    cpu_bench.measure_one_thread(run)
    assert run.lines[0].why.endswith("of memory, 1.0 kB are free") and run.lines[0].verdict == "not measured"


def test_recordings_that_are_not_there_cost_one_line(sweep):
    run = CpuRun(replace(sweep, recordings=Path("nowhere.tsv")), {}, patience=ONCE)
    cpu_bench.measure_words(run)
    assert "nowhere.tsv" in run.lines[0].why


def test_candidates_take_turns_and_the_first_round_does_not_count():
    calls = []

    def act(name: str, *spent: float):
        values = iter(spent)
        return lambda: calls.append(name) or next(values)

    found = in_turns({"a": act("a", 9, 1, 3, 2), "b": act("b", 9, 4, 4, 4)}, Patience(3, 3))
    assert "".join(calls) == "abababab"
    assert found == {"a": Spread(1, 2, 3), "b": Spread(4, 4, 3)}


def test_a_comparison_ends_when_its_time_is_up_but_not_before_the_least_rounds():
    found = in_turns({"a": lambda: 1.0}, Patience(rounds=1000, least=4, seconds=0.0))
    assert found["a"].samples == 4


def test_what_is_used_in_turn_comes_round_again():
    following = cycling([lambda n=n: float(n) for n in range(3)])
    assert [following() for _ in range(5)] == [0, 1, 2, 0, 1]
    assert timed(lambda: None)() >= 0


@pytest.mark.parametrize(
    ("held", "ours", "theirs", "wanted", "ratio", "verdict"),
    [
        ("floor", 2.0, 1.8, Wanted(0.85), 0.9, "met"), ("floor", 2.0, 1.6, Wanted(0.85), 0.8, "missed"),
        ("peer", 2.0, 3.0, Wanted(1.5), 1.5, "met"), ("peer", 2.0, 1.0, Wanted(1.5), 0.5, "missed"),
        ("time", 0.04, 0.08, Wanted(1.0, below=True), 0.5, "met"),
        ("time", 0.08, 0.08, Wanted(1.0, below=True), 1.0, "missed"),
        ("points", 0.052, 0.05, Wanted(0.3, below=True), 0.2, "met"),
        ("points", 0.054, 0.05, Wanted(0.3, below=True), 0.4, "missed"),
        ("floor", 2.0, None, Wanted(0.85), None, "not measured"), ("floor", 2.0, 1.0, None, 0.5, ""),
    ],
)  # fmt: skip
def test_figures_are_held_against_what_is_wanted(held, ours, theirs, wanted, ratio, verdict):
    beside = None if theirs is None else spread(theirs)
    line = Line("x", "ms", spread(ours), "y", beside, held, wanted)
    assert line.ratio == (ratio and pytest.approx(ratio))
    assert line.verdict == verdict


def test_numbers_are_told_in_their_unit_with_both_best_and_median():
    line = Line("x", "ms", spread(0.001, 0.002), "reading", spread(0.0009, 0.0018), "floor", Wanted(0.85))
    assert line.cells() == (
        "x", "1 ms", "2 ms", "reading", "0.9 ms", "1.8 ms", "90 %", "90 %", "at least 85 %", "met",
    )  # fmt: skip
    assert line.as_json()["ours"] == {"best": 1.0, "median": 2.0, "samples": 3}
    speed = Line("reading", "GB/s", spread(42.81e9, 40e9))
    assert speed.cells() == ("reading", "42.8 GB/s", "40.0 GB/s", "", "", "", "", "", "", "")
    points = Line("words", "%", spread(0.054), "f32", spread(0.052), "points", Wanted(0.3, below=True))
    assert points.cells()[1:] == (
        "5.4 %", "5.4 %", "f32", "5.2 %", "5.2 %", "0.20 points", "0.20 points", "below 0.30 points", "met",
    )  # fmt: skip


def test_reasons_are_told_once_with_how_many_they_kept_from_being_measured():
    lines = [Line(name, "ms", None, why="no time") for name in "abc"] + [Line("d", "ms", None, why="no room")]
    text = CpuReport({}, tuple(lines)).markdown()
    assert text.endswith("### Left out\n\n- a and 2 more: no time\n- d: no room")


def test_without_a_package_that_brings_ggml_the_cure_is_said(monkeypatch):
    monkeypatch.setattr(ggml_peer, "PACKAGES", {"no-such-thing": ("no_such_thing", ())})
    with pytest.raises(Absent, match="pip install xllamacpp"), Ggml.start():
        pass


def test_a_peer_that_falls_over_is_left_out(monkeypatch):
    monkeypatch.setattr(ggml_peer, "PACKAGES", {"json": ("json", ())})  # it is there, and knows no ggml
    monkeypatch.setattr(ggml_peer, "SERVER", (sys.executable, "-c", "import os; os.abort()"))
    with pytest.raises(Absent, match="ended with code -"), Ggml.start():
        pass


def test_a_peer_says_what_it_cannot_do(monkeypatch):
    told = "import sys; sys.stdin.readline(); print('{\"error\": \"no\"}', flush=True)"
    monkeypatch.setattr(ggml_peer, "PACKAGES", {"json": ("json", ())})
    monkeypatch.setattr(ggml_peer, "SERVER", (sys.executable, "-c", told))
    with pytest.raises(Absent, match="ggml: no"), Ggml.start():
        pass


def test_ggml_multiplies_where_it_is_installed():
    if not any(map(ggml_peer._installed, ggml_peer.PACKAGES)):
        pytest.skip("no package with ggml is installed; pip install xllamacpp")
    with Ggml.start() as peer:
        turns = peer.hold(64, 64, copies=3, each=2, threads=1)
        assert turns == 2 and all(0 < peer.multiply(turn) < 10 for turn in range(turns))
        assert peer.name.split()[0] in ggml_peer.PACKAGES


def test_a_backend_without_kernels_is_refused(capsys):
    assert main(["bench", "--backend", "portable", "--kernels"]) == 2
    assert "portable has no kernels to measure; name one: --backend cpu or --backend cuda" in (
        capsys.readouterr().err
    )


def test_recordings_that_make_no_sense_are_refused_before_anything_is_measured(capsys, tmp_path):
    assert main(["bench", "--backend", "portable", "--recordings", str(tmp_path / "none.tsv")]) == 1
    assert "none.tsv" in capsys.readouterr().err


def test_the_figures_of_kernels_stand_behind_those_of_the_model(
    monkeypatch, capsys, tmp_path, tiny_folder
):
    found = CpuReport({"date": "today"}, (Line("x", "ms", spread(0.001)),))
    monkeypatch.setattr(kernel_bench, "bench_cpu", lambda budget, options, sweep: found)
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text("# Benchmarks\n")
    words = ["bench", "--weights", str(tiny_folder), "--seconds", "0.4", "--backend", "cpu"]
    assert main([*words, "--record"]) == 0
    assert "| x " in capsys.readouterr().out
    assert f"## CPU\n\n{CPU.begin}\n\n- date: today\n" in Path(FILE).read_text()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cpu"]["figures"][0]["figure"] == "x"
    assert main([*words, "--no-kernels"]) == 0
    assert "| x " not in capsys.readouterr().out
