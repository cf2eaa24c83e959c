"""The measurement of a GPU, every line of it, on the emulated one: what it took is no speed of anything."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kernels import BackendMissing, DeviceLost, KernelError, open_backend
from kernels.cuda.backend import Cuda
from pipeline.cli import main
from pipeline.errors import GraphError
from pipeline.tools.card_bench import bench_card
from pipeline.tools.card_clock import Effort, Stopwatch, Timing
from pipeline.tools.card_figures import (
    COMPILED,
    EAGER,
    GOALS,
    OURS,
    READ,
    CardReport,
    Figure,
    Place,
    decode_place,
    tick_place,
    verdict,
    winners,
)
from pipeline.tools.card_model import random_checkpoint, weight_bytes
from pipeline.tools.card_ops import measure_attention, measure_memory, products
from pipeline.tools.card_peers import BF16, INT4, SDPA, Peers
from pipeline.tools.card_run import TIME_UP, CardRun, Sweep
from pipeline.tools.card_tables import CUDA, TABLES, markdown
from pipeline.tools.floors import measure_floors
from pipeline.tools.records import FILE
from stages.voxtral.config import OFFICIAL, Audio, Config, Decoder, Encoder
from stages.voxtral.names import tensor_table
from tests.kernels.emulator.device import EmulatedDevice

SMALL = Config(
    Audio(),
    Encoder(
        dim=64, layers=1, heads=1, kv_heads=1, head_dim=64, hidden_dim=64, window=10, rope_theta=1e6,
        norm_eps=1e-5,
    ),
    Decoder(
        dim=64, layers=1, heads=4, kv_heads=1, head_dim=128, hidden_dim=64, window=20, rope_theta=1e6,
        norm_eps=1e-5, vocab=128, ada_dim=32,
    ),
    downsample=4,
)  # fmt: skip
SWEEP = Sweep(
    SMALL, rows=(1, 5), lanes=(2,), recordings=(1,), positions=(18,), tick_position=8, silence=1,
    pool_bytes=1, read_bytes=1 << 14, calls=3, links=3,
)  # fmt: skip
ONCE = Effort(samples=1, sample_s=0)
THEIRS = {BF16, INT4, SDPA, EAGER, COMPILED}
BEGIN, END = CUDA.begin, CUDA.end
NOWHERE = "a device that torch does not know"


def emulated(free: int = 1 << 30) -> Cuda:
    try:
        return Cuda(EmulatedDevice("plain", free=free))
    except BackendMissing as reason:
        pytest.skip(f"emulated: {reason}")


@pytest.fixture(scope="module", params=["emulated", pytest.param("card", marks=pytest.mark.gpu)])
def report(request: pytest.FixtureRequest) -> CardReport:
    try:
        ops = emulated() if request.param == "emulated" else open_backend("cuda")
    except BackendMissing as reason:
        pytest.skip(str(reason))
    return bench_card(ops, SWEEP, ONCE, Peers(ONCE, NOWHERE))


def figure(place: Place, variant: str, seconds: float, nbytes: int = 0) -> Figure:
    return Figure(place, variant, Timing(seconds, 2 * seconds), nbytes)


def told(*figures: Figure) -> CardReport:
    return CardReport({"card": "of thought"}, figures)


def measuring(ops: Cuda, effort: Effort = ONCE) -> CardRun:
    return CardRun(ops, SWEEP, Stopwatch(effort))


def test_every_figure_of_ours_is_taken_and_every_peer_says_why_not(report: CardReport):
    left_out = {f.variant: f.why for f in report.figures if f.time is None}
    assert set(left_out) == THEIRS
    assert all("torch" in why or "transformers" in why for why in left_out.values()), left_out
    taken = [f.time for f in report.figures if f.time]
    assert all(math.isfinite(t) and t > 0 for time in taken for t in (time.seconds, time.again))
    assert report.notes == ()


def test_no_figure_is_taken_twice_and_none_is_forgotten(report: CardReport):
    names = [(f.place, f.variant) for f in report.figures]
    assert len(set(names)) == len(names)
    assert {f.place.part for f in report.figures} == {table.part for table in TABLES}
    for name in products(SMALL):
        for rows, ways in ((1, {"fragment", "rows", "bf16"}), (5, {"fragment", "bf16"})):
            at = ("rows", rows)
            here = {f.variant for f in report.figures if f.place.name == name and at in f.place.at}
            assert here == ways | {"cuBLAS bf16", BF16, INT4}
    steps = {(f.place, f.variant) for f in report.figures}
    for position in SWEEP.positions:
        for variant in (OURS, "q8", f"{OURS} unfused", EAGER, COMPILED):
            assert (decode_place(position), variant) in steps
    for lanes in SWEEP.lanes:
        assert {(tick_place(lanes, 8), OURS), (tick_place(lanes, 8), "q8")} <= steps


def test_ops_are_as_exact_as_they_should_be(report: CardReport):
    assert len(report.errors) == 9
    assert not [error for error in report.errors if not 0 < error.found <= error.allowed]


def test_floors_are_multiples_of_the_reading_of_the_same_run(report: CardReport):
    read = next(f for f in report.figures if f.variant == READ)
    assert report.read_bytes_s == pytest.approx(SWEEP.read_bytes / read.time.seconds)
    for found in report.figures:
        if found.time and found.nbytes:
            expected = found.time.seconds * report.read_bytes_s / found.nbytes
            assert report.floors(found) == pytest.approx(expected)
        else:
            assert report.floors(found) is None


def test_the_report_is_json_and_keeps_every_figure(report: CardReport):
    kept = json.loads(json.dumps(report.as_json()))
    assert list(kept) == ["about", "goals", "errors", "figures", "notes"]
    assert len(kept["figures"]) == len(report.figures)
    assert all({"us", "us_again"} <= set(f) or f["why"] for f in kept["figures"])
    assert [goal["goal"] for goal in kept["goals"]] == [goal.text for goal in GOALS]
    product = next(f for f in kept["figures"] if f["part"] == "product")
    assert {"outputs", "inputs", "rows", "bytes", "tb_s", "floors"} <= set(product)


def test_the_tables_have_a_row_for_every_place_and_a_line_for_every_reason(report: CardReport):
    text = markdown(report)
    for table in TABLES:
        section = text.partition(f"### {table.title}\n")[2].partition("###")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert len(rows) == 1 + len({f.place for f in report.part(table.part)})
        assert len({line.count("|") for line in rows}) == 1
    reasons = {f.why for f in report.figures if f.why}
    left_out = text.partition("### Left out\n")[2]
    assert reasons and all(why in left_out for why in reasons)
    assert f"- product, {BF16}, decoder head outputs 128 inputs 64 rows 1 and 17 more: " in left_out


def test_a_spent_budget_leaves_figures_out_and_says_so():
    report = bench_card(emulated(), SWEEP, Effort(budget_s=1e-9, samples=1, sample_s=0), Peers(ONCE, NOWHERE))
    assert {f.why for f in report.figures} == {TIME_UP} and not report.errors
    assert len(report.notes) == 9 and all(note.endswith(TIME_UP) for note in report.notes)
    assert "not measured" in markdown(report) and "--budget" in markdown(report)


def test_what_does_not_fit_the_card_is_left_out_with_both_sizes():
    run = measuring(emulated(free=2000))
    measure_attention(run, Peers(ONCE, NOWHERE))
    why = next(f.why for f in run.figures if f.variant == OURS)
    assert why == "needs 18.4 kB on the card, 2.0 kB are free"


def test_a_lost_device_is_asked_for_nothing_more():
    run = measuring(emulated())
    place = Place("memory", "x")

    def lost() -> Timing:
        raise DeviceLost("cuda: the card stopped answering")

    def refused() -> Timing:
        raise KernelError("cuda: no")

    run.take(place, "refused", refused)
    run.take(place, "lost", lost)
    run.take(place, "behind it", lambda: pytest.fail("a lost device was asked"))
    run.check("linear", 1e-6, lambda: pytest.fail("a lost device was asked"))
    assert [f.why for f in run.figures] == ["cuda: no", *2 * ["cuda: the card stopped answering"]]
    assert run.notes == ["error of linear: cuda: the card stopped answering"]


def test_a_mistake_of_ours_costs_its_own_figure_alone():
    run = measuring(emulated())

    def mistaken() -> Timing:
        raise TypeError("no tuple")

    for name in ("one", "another"):
        run.take(Place("memory", name), OURS, mistaken)
    run.check("linear", 1e-6, lambda: 1 / 0)
    assert [f.why for f in run.figures] == 2 * ["unexpected TypeError('no tuple')"]
    assert run.notes == ["error of linear: unexpected ZeroDivisionError('division by zero')"]


def test_a_sample_is_long_enough_to_be_timed():
    ops, calls = emulated(), []
    effort = Effort(samples=3, sample_s=0.02)
    time = Stopwatch(effort).queued(ops, lambda: calls.append(1), before=lambda: calls.append(0))
    rounds = "".join(map(str, calls)).split("0")[1:]
    wanted = 2 + 1 + 2 * effort.samples  # to warm up, to guess, to warm up again, and the samples
    assert len(rounds) == wanted
    assert len({len(acts) for acts in rounds[2:]}) == 1 and len(rounds[2]) > 100
    assert min(time.seconds, time.again) > 0


def test_memory_is_measured_on_what_the_card_has_room_for():
    run = measuring(emulated(free=4096))
    measure_memory(run)
    assert [f.nbytes for f in run.figures] == [1024, 2048]


@pytest.mark.parametrize(
    ("found", "said"),
    [(None, "not measured"), (0.5, "met"), (0.66, "met"), (0.7, "first met"), (0.86, "missed")],
)
def test_a_goal_is_met_at_first_then_wholly(found: float | None, said: str):
    assert verdict(found, 0.85, 0.66) == said


@pytest.mark.parametrize(
    ("ours", "eager", "compiled", "times", "said"),
    [
        (1e-3, 9e-3, 3e-3, 3.0, "met"), (1e-3, 9e-3, 1.5e-3, 1.5, "first met"),
        (2e-3, 9e-3, 1e-3, 0.5, "missed"), (1e-3, None, None, None, "not measured"),
        (None, 9e-3, 3e-3, None, "not measured"), (1e-3, 4e-3, None, 4.0, "met"),
    ],
)  # fmt: skip
def test_peers_are_beaten_when_the_best_of_them_is(ours, eager, compiled, times, said):
    taken = {OURS: ours, EAGER: eager, COMPILED: compiled}
    place = decode_place(1000)
    figures = [figure(place, variant, seconds) for variant, seconds in taken.items() if seconds]
    goal, found, verdict = list(told(*figures).judged())[-1]
    assert goal.peers and verdict == said
    assert found == (times and pytest.approx(times))


def test_goals_are_judged_by_the_better_of_both_medians_in_ms():
    report = told(figure(tick_place(64, 1000), OURS, 9e-3), figure(decode_place(1000), OURS, 0.6e-3))
    assert [(found and round(found, 6), said) for _, found, said in report.judged()] == [
        (0.6, "met"), (None, "not measured"), (9.0, "first met"), (None, "not measured"),
    ]  # fmt: skip
    assert "| 9.00 ms " in markdown(report)


def test_the_faster_layout_wins_where_both_were_timed():
    one, two = Place("product", "head", (("rows", 1),)), Place("product", "head", (("rows", 8),))
    figures = [
        figure(one, "fragment", 2.0), figure(one, "rows", 1.0), figure(one, "torch bf16", 0.5),
        figure(two, "fragment", 1.0),
    ]  # fmt: skip
    assert winners(figures, ("fragment", "rows")) == {one: "rows"}


def test_figures_are_recorded_behind_the_text_then_in_their_own_place(tmp_path: Path):
    path = tmp_path / FILE
    path.write_text("# Benchmarks\n\nWords.\n")
    CUDA.check(path)
    CUDA.write(markdown(told(figure(decode_place(1000), OURS, 1e-3))), path)
    first = path.read_text()
    assert first.startswith(f"# Benchmarks\n\nWords.\n\n## CUDA\n\n{BEGIN}\n") and first.endswith(f"{END}\n")
    assert "| decode | 1 " in first
    path.write_text(first.replace(END, f"{END}\n\n## Error rates"))
    CUDA.write(markdown(told(figure(decode_place(1000), OURS, 5e-3))), path)
    second = path.read_text()
    assert second.startswith(first.partition(BEGIN)[0]) and second.endswith(f"{END}\n\n## Error rates\n")
    assert "5 10" in second and "1 2" not in second and second.count("## CUDA") == 1
    CUDA.write(markdown(told(figure(decode_place(1000), OURS, 5e-3))), path)
    assert path.read_text() == second


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_half_a_place_is_refused_before_anything_is_measured(tmp_path: Path, text: str):
    path = tmp_path / FILE
    path.write_text(text)
    with pytest.raises(GraphError, match="once each, in this order"):
        CUDA.check(path)
    assert path.read_text() == text


def test_a_file_that_cannot_be_read_is_refused_before_anything_is_measured(tmp_path: Path):
    with pytest.raises(GraphError, match=r"BENCHMARKS\.md, which cannot be read: No such file"):
        CUDA.check(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(GraphError, match="cannot be read: not UTF-8"):
        CUDA.check(tmp_path / FILE)


def test_made_up_weights_have_the_table_of_the_real_ones_and_are_always_the_same():
    made, again = random_checkpoint(SMALL), random_checkpoint(SMALL)
    assert set(made.rows) == set(tensor_table(SMALL))
    for name, row in made.rows.items():
        raw, kind, shape = made.raw(name)
        entry = made.weights.entries[row.mistral]
        assert (shape, len(raw), kind) == (row.shape, entry.nbytes, "q4_0" if row.linear else "f32")
        assert np.array_equal(raw, again.raw(name)[0])
    assert made.left_pad_tokens == 32
    assert not np.array_equal(made.raw("decoder.layers.0.wq")[0], made.raw("decoder.layers.0.wo")[0])


def test_the_bytes_of_a_step_are_those_of_the_design():
    assert weight_bytes(OFFICIAL, "decoder") == 1_928_724_480
    assert weight_bytes(OFFICIAL, "") == 2_507_145_216
    shapes = dict(products(OFFICIAL))
    assert shapes["decoder head"] == (131_072, 3072) and shapes["decoder q, k, v"] == (6144, 3072)
    assert shapes["encoder gate, up"] == (10_240, 1280) and len(shapes) == 9


def test_the_floor_of_a_graph_on_a_gpu_is_the_speed_of_its_own_memory():
    ops = emulated(free=4096)
    floors = measure_floors(random_checkpoint(SMALL), ops)
    assert 0 < floors.read_bytes_s < 1e9, "an emulated kernel read it"
    assert min(floors.read_ms, floors.numpy_ms, floors.linear_ms) > 0


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["bench", *words])
    return code, capsys.readouterr().err.strip()


def test_options_that_contradict_each_other_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = "bench: expected --json or --markdown, found both"
    assert complaint(capsys, "--json", "--markdown") == (2, both)
    assert complaint(capsys, "--record", "--no-kernels")[0] == 2
    assert "found 0" in complaint(capsys, "--budget", "0")[1]
    assert "found nan" in complaint(capsys, "--budget=nan")[1]
    code, said = complaint(capsys, "--record")
    assert code == 2 and said.startswith("bench: --record writes into BENCHMARKS.md")


@pytest.mark.parametrize("words", [["--backend", "cuda"], ["--backend=cuda", "--record"]])
def test_without_a_gpu_the_reason_and_the_cure_are_said(capsys, tmp_path, monkeypatch, words):
    try:
        open_backend("cuda")
    except BackendMissing as reason:
        expected = str(reason)
    else:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_text("# Benchmarks\n")
    assert complaint(capsys, *words) == (1, expected)
    assert (tmp_path / FILE).read_text() == "# Benchmarks\n"


def test_without_a_gpu_the_figures_are_those_of_the_processor(capsys, monkeypatch, tiny_folder):
    words = ["--weights", str(tiny_folder), "--seconds", "0.4", "--backend", "portable"]
    assert main(["bench", *words, "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| weights | backend |") and "| portable |" in rows[2]
    assert len({row.count("|") for row in rows[:3]}) == 1
    assert [row.partition(" ms")[0].split(" | ")[0] for row in rows[-4:]] == ["| 1", "| 2", "| 4", "| 8"]


@pytest.mark.oracle
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_and_transformers_are_timed_where_they_are_installed(compiled: bool):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peers = Peers(ONCE, "cpu")
    taken = [multiply(rows) for _, multiply in peers.products(SWEEP, 64, 128).values() for rows in (1, 5)]
    taken.append(peers.attention(SWEEP, SMALL.decoder, 2, 1, 8))
    taken.append(peers.decoder(SMALL.decoder)(8, compiled))
    assert len(taken) == 6 and all(0 < t < 60 for time in taken for t in (time.seconds, time.again))
