"""The command line, called as `python -m pipeline` calls it: help that teaches, exit codes, one line for a
mistake, and nothing but what was asked for on standard output.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import manual
from pipeline.catalog import SINKS, SOURCES, STAGES
from pipeline.cli import main, make_parser, parse
from pipeline.errors import GraphError

COMMANDS = sorted(make_parser().commands)
EXAMPLE = re.compile(r"python -m pipeline ((?:[^|>\n\\]|\\\n)+)")
WIDTH = 110

OWN_STAGE = """
from dataclasses import dataclass
from typing import Any

@dataclass(frozen=True)
class Broken:
    upstream: Any
    quantum: int = 1
    lookahead: int = 0
    takes = property(lambda self: self.upstream)
    gives = property(lambda self: self.upstream)
    def open(self, lanes=1): return None
    def step(self, state, packet): return 1 // 0
    def flush(self, state, lane=0): return []
"""


@pytest.fixture(scope="module")
def talk(tmp_path_factory, restless) -> Path:
    """Two seconds that make the tiny model talk."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, restless(2.0), 16_000, subtype="PCM_16")
    return path


@pytest.fixture
def cli(capsys, tiny_folder, monkeypatch):
    """`cli(*words)` is (exit code, standard output, standard error) of a command on the tiny model."""
    monkeypatch.setenv("VOXTRAL", str(tiny_folder))

    def call(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as done:  # --help and --version
            code = int(done.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def spoken(tiny_run, talk) -> str:
    return f"{tiny_run().transcribe(talk)}\n"


def run_of(path: Path, *more: object) -> list[object]:
    return ["run", "file", "--set", f"source.file.path={path}", *more]


# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples_that_fit_a_terminal(cli, command):
    code, out, err = cli(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert "examples:\n" in out and f"python -m pipeline {command}" in out.partition("examples:")[2]
    assert max(map(len, out.splitlines())) <= WIDTH


def test_every_example_in_the_help_parses():
    texts = [manual.OVERVIEW, *manual.COMMANDS.values()]
    examples = [found[1].replace("\\\n", " ") for text in texts for found in EXAMPLE.finditer(text)]
    for example in examples:
        words = shlex.split(re.split(r"\s{3,}|`", example)[0])  # what follows explains
        if words[0] != "COMMAND":
            parse(words)
    assert len(examples) > len(COMMANDS)


def test_the_overview_names_every_command_and_exit_code(cli):
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^    {command}\b", out, re.M) for command in COMMANDS)
    assert re.search(r"0 ok, 1 .* 2 .* 3 .* 130", out, re.S)


# mistakes in usage


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "required: COMMAND"),
        ("rnu file", "there is no 'rnu'; did you mean 'run'?"),
        ("run", "required: graph"),
        ("run file more", "unrecognized arguments: more"),
        ("run file --metric", "there is no option '--metric'; did you mean '--metrics'?"),
        ("run file --delya 960ms", "--delya: this graph has no such parameter; did you mean 'delay'?"),
        ("run file --delay", "no option '--delay'"),
        ("run file --delay 5", "--delay: parameter 'delay': expected a duration with its unit"),
        ("run file --delay 500ms", "voxtral.yaml:13:5: pad: delay is 500"),
        ("run file --set", "argument --set: expected one argument"),
        ("run file --set path", "--set path: expected node.option=value"),
        ("run file --set source.file.pth=x", "file has no option 'pth'; did you mean 'path'?"),
        ("run file --set sorce.file.path=x", "no node is called 'sorce.file'; did you mean 'source'?"),
        ("run file --set source.file.pace=fast", "pace is asap, realtime or a factor such as 8x, not 'fast'"),
        ("run file --set source.file.block=0ms", "a block is 1 ms to 60 s long"),
        ("run file --set source.file.path=", "file.path: expected text or a path, found nothing"),
        ("run file --weights=", "found nothing"),
        ("run file --backend portabel", "--backend: backend: expected 'auto' or 'portable'"),
        ("run fil", "fil: there is no such file, nor a graph of that name; did you mean 'file'?"),
        ("run voxtral", "voxtral: it has no source to run with; add one, as in --set source.file.path="),
        ("run voxtral --set source.file.path=x", "voxtral: it has no sink to run with"),
        ("transcribe", "required: FILE"),
        ("transcribe a.wav --format docx", "argument --format: there is no 'docx'; there are: json, jsonl, "),
        ("transcribe a.wav -o ''", "output is a file, a folder or -, not nothing"),
        ("inspect mell", "no stage, source, sink or backend is called 'mell'; did you mean 'mel'?"),
        ("doctor --jsn", "there is no option '--jsn'; did you mean '--json'?"),
        ("weights random --seed -1 x.gguf", "a seed is a whole number from 0, not -1"),
        ("weights random --like voxtral x.gguf", "'voxtral' should be one of voxtral-mini-4b"),
        ("bench --seconds x", "argument --seconds: invalid float value: 'x'"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_and_with_exit_code_two(cli, words, says):
    code, out, err = cli(*shlex.split(words))
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1 and "Traceback" not in err


def test_several_faults_of_a_graph_are_named_at_once_with_their_places(cli, tmp_path):
    graph = tmp_path / "bad.yaml"
    graph.write_text("use: voxtral.yaml\nuse: voxtral.yaml\nsource: {fil: {}}\nsink: {lines: {pth: x}}\n")
    code, out, err = cli("run", graph)
    assert (code, out) == (2, "")
    assert [line.removeprefix(f"{graph}:").partition(": ")[0] for line in err.splitlines()] == [
        "2:1", "3:10", "4:16"
    ]  # fmt: skip


# what it does


def test_standard_output_holds_the_text_and_nothing_else(cli, talk, spoken):
    code, out, err = cli(*run_of(talk, "--metrics"))
    assert (code, out) == (0, spoken)
    assert "real-time factor" in err and err.startswith("stage")


@pytest.mark.parametrize("more", [(), ("block=37ms",), ("pace=8x",), ("pace=20x", "block=37ms")])
def test_overrides_of_the_source_change_nothing_in_the_text(cli, talk, spoken, more):
    sets = [word for one in more for word in ("--set", f"source.file.{one}")]
    assert cli(*run_of(talk, *sets)) == (0, spoken, "")


def test_parameters_may_stand_anywhere(cli, talk, tiny_run):
    expected = f"{tiny_run(params={'delay': '960ms'}).transcribe(talk)}\n"
    assert cli(*run_of(talk, "--delay", "960ms")) == (0, expected, "")
    assert cli("transcribe", "--delay", "960ms", talk) == (0, expected, "")
    assert cli("transcribe", talk, "--delay=960ms") == (0, expected, "")


def test_the_built_in_model_says_so_in_one_line(cli, talk, monkeypatch):
    monkeypatch.delenv("VOXTRAL")
    code, _, err = cli("transcribe", talk)
    assert code == 0
    assert err.startswith("using the built-in small model") and err.count("\n") == 1


def test_a_graph_runs_from_any_folder(cli, talk, spoken, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfuse: voxtral.yaml\r\nsink: {lines: {}}\r\n")
    assert cli("run", "mine.yaml", "--set", f"source.file.path={talk}") == (0, spoken, "")


def test_figures_are_written_as_json(cli, talk, spoken, tmp_path):
    assert cli(*run_of(talk, "--metrics-json", tmp_path / "figures.json")) == (0, spoken, "")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["audio_s"] == 2.0 and figures["sessions"][0]["name"] == str(talk)


def test_figures_that_cannot_be_written_are_known_before_the_run(cli, tmp_path):
    code, out, err = cli("run", "file", "--weights", "nowhere", "--metrics-json", tmp_path / "no" / "x.json")
    assert (code, out) == (1, "")
    assert "no/x.json: cannot create it" in err and "create the folder" in err


@pytest.mark.parametrize(
    "words", ["inspect", "draw file", "draw mic --format dot", "schema", "doctor", "doctor --json", "devices"]
)
def test_looking_needs_no_weights(cli, words):
    code, out, err = cli(*words.split())
    assert code == (1 if "PortAudio" in err else 0)
    assert bool(out) != bool(err)


@pytest.mark.parametrize("name", sorted({*STAGES, *SOURCES, *SINKS}))
def test_inspect_explains_every_name(cli, name):
    code, out, err = cli("inspect", name)
    assert (code, err) == (0, "") and out.startswith(name)


@pytest.mark.parametrize("graph", ["file", "mic", "batch", "voxtral"])
def test_every_graph_that_ships_is_valid(cli, graph):
    code, out, err = cli("validate", graph, "--weights", "nowhere")
    assert (code, err) == (0, "") and out.startswith(f"{graph}: ok, 8 stages")


def test_weights_go_to_gguf_and_back(cli, tiny_folder, tmp_path):
    assert cli("quantize", tiny_folder, tmp_path / "q8.gguf", "--kind", "q8_0") == (0, "", "")
    assert cli("quantize", tmp_path / "q8.gguf", tmp_path / "back.safetensors") == (0, "", "")
    for name, kind in (("q8.gguf", "q8_0"), ("back.safetensors", "bf16")):
        code, out, err = cli("weights", tmp_path / name, "--tensors")
        assert (code, err) == (0, "") and "57 tensors" in out and f" {kind} " in out


def test_random_weights_can_be_run_at_once(cli, talk, tiny_folder, tmp_path):
    out = tmp_path / "random.gguf"
    assert cli("weights", "random", "--like", tiny_folder / "params.json", out) == (0, "", "")
    assert cli(*run_of(talk, "--weights", out))[0] == 0


# failures


def test_each_class_of_failure_has_its_exit_code(cli, talk, tmp_path):
    assert cli(*run_of(talk))[0] == 0
    assert cli(*run_of(tmp_path / "no.wav"))[0] == 1
    assert cli("run", tmp_path / "no.yaml")[0] == 2
    assert cli(*run_of(talk, "--weights", tmp_path / "no"))[0] == 3


@pytest.mark.parametrize("there", [None, "tekken.json", "consolidated.safetensors"])
def test_missing_weights_are_answered_with_instructions(cli, talk, tiny_folder, tmp_path, there):
    weights = tmp_path / "weights"
    if there is not None:
        weights.mkdir()
        (weights / there).write_bytes((tiny_folder / there).read_bytes())
    code, out, err = cli(*run_of(talk, "--weights", weights))
    assert (code, out) == (3, "")
    assert str(weights) in err.splitlines()[0]
    assert "mistralai/Voxtral-Mini-4B-Realtime-2602" in err and "tekken.json" in err


def test_only_debug_shows_a_traceback_and_it_keeps_the_exit_code(cli, talk):
    code, out, err = cli(*run_of("nowhere.wav"))
    assert (code, out, err) == (1, "", "nowhere.wav: there is no such file\n")
    code, out, err = cli(*run_of("nowhere.wav", "--debug"))
    assert (code, out) == (1, "") and err.startswith("Traceback") and "nowhere.wav: there is no such" in err
    assert cli(*run_of(talk, "--weights", "nowhere", "--debug"))[0] == 3


def test_a_failing_stage_of_ones_own_is_one_line(cli, talk, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_stage_that_fails.py").write_text(OWN_STAGE)
    graph = tmp_path / "own.yaml"
    graph.write_text("chain: [own_stage_that_fails:Broken]\n")
    sets = ("--set", f"source.file.path={talk}", "--set", f"sink.wav.path={tmp_path / 'out.wav'}")
    code, out, err = cli("run", graph, *sets)
    assert (code, out) == (2, "") and "allow it with --allow-import" in err
    code, out, err = cli("run", graph, "--allow-import", *sets)
    assert (code, out) == (1, "")
    assert err.startswith("unexpected ZeroDivisionError") and err.count("\n") == 1


def test_control_characters_of_a_file_name_are_spelt_out(cli):
    code, _, err = cli(*run_of(Path("\x1b[31mred\udcff.wav")))
    assert code == 1 and err == r"\x1b[31mred\udcff.wav: there is no such file" + "\n"


# transcribe


def test_a_bad_recording_stops_no_other_and_shows_in_the_exit_code(cli, talk, spoken, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio at all")
    code, out, err = cli("transcribe", talk, "nowhere.wav", bad, talk)
    assert (code, out) == (1, spoken * 2)
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["nowhere.wav", str(bad)]


@pytest.mark.parametrize("format", ["json", "jsonl", "srt", "vtt"])
def test_formats_are_what_they_say(cli, talk, spoken, format):
    code, out, err = cli("transcribe", talk, "--format", format)
    assert (code, err) == (0, "")
    if format == "json":
        assert json.loads(out)["text"].split() == spoken.split()
    elif format == "jsonl":
        words = [json.loads(line) for line in out.split("\n") if line]
        assert [word["text"] for word in words] == spoken.split()
        assert all(word["start"] < word["stop"] for word in words)
    else:
        stamp = r"\d\d:\d\d:\d\d[,.]\d{3}"
        cue = rf"1\n{stamp} --> {stamp}\n.+\n"
        assert re.match(cue if format == "srt" else rf"WEBVTT\n\n{cue}", out)


def test_output_goes_to_a_file(cli, talk, spoken, tmp_path):
    assert cli("transcribe", talk, "-o", tmp_path / "talk.txt") == (0, "", "")
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == spoken


@pytest.mark.parametrize(
    "words",
    [
        "transcribe {0} -o {0}",
        "transcribe x.wav {0} -o {1}",
        "run file --set source.file.path={0} --set sink.lines.path={0}",
        "run file --set source.file.path={0} --set sink.lines.path={1}",
    ],
)
def test_a_recording_is_never_written_over(cli, tmp_path, restless, words):
    path, link = tmp_path / "talk.wav", tmp_path / "link.txt"
    soundfile.write(path, restless(0.1), 16_000)
    link.symlink_to(path)
    before = path.read_bytes()
    code, out, err = cli(*shlex.split(words.format(path, link)))
    assert (code, out) == (2, "") and ("is also a recording" in err or "would write over" in err)
    assert path.read_bytes() == before


def test_replaced_samples_are_mentioned_and_the_text_stays_clean(cli, tmp_path, restless):
    audio = restless(1.0)
    audio[5:8] = np.nan, np.inf, -np.inf
    soundfile.write(tmp_path / "nan.wav", audio, 16_000, subtype="FLOAT")
    for words in (run_of(tmp_path / "nan.wav"), ["transcribe", tmp_path / "nan.wav"]):
        code, out, err = cli(*words)
        assert code == 0 and out.count("\n") == 1
        assert "3 broken samples" in err and err.count("\n") == 1


def test_a_terminal_without_unicode_gets_question_marks_and_escaped_json(cli, talk, spoken, monkeypatch):
    assert not spoken.isascii()

    def shown(format: str) -> str:
        memory = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(memory, encoding="ascii"))
        assert main(["transcribe", str(talk), "--format", format]) == 0
        return memory.getvalue().decode("ascii")

    assert shown("txt") == spoken.encode("ascii", "replace").decode()
    assert json.loads(shown("json"))["text"].split() == spoken.split()


def test_a_manifest_that_cannot_be_read_is_one_line(cli, tmp_path):
    pytest.importorskip("jiwer")
    (tmp_path / "bad.tsv").write_text("path\ttext\na.wav\thello\n")
    for path, says in ((tmp_path / "bad.tsv", "expected a header with the column 'file'"),
                       (tmp_path / "no.tsv", "there is no such file")):  # fmt: skip
        code, out, err = cli("evaluate", path)
        assert (code, out) == (1, "") and says in err and err.count("\n") == 1


def test_usage_errors_are_graph_errors_in_a_program():
    with pytest.raises(GraphError, match="there is no option"):
        parse(["run", "--nothing"])
