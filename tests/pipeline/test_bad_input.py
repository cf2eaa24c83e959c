"""What the world does to a program: broken recordings, pipes that close, disks that fill, signals. Every
answer is one line that names the place, the right exit code, and the text that was recognised until then.

Processes run with warnings as errors and Python's development mode, so leaked files and threads would show.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.cli import main

posix = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and devices as POSIX has them")
STRICT = ("-W", "error", "-X", "dev")
PROGRAM = ("-m", "pipeline")
TIMEOUT_S = 120  # far more than any of this takes on a busy machine
FULL = Path("/dev/full")
HARMFUL_YAML = {
    "bomb": "a: &a [x, x]\nb: &b [*a, *a]\nchain: [*b, *b]\n",
    "deep": "chain: " + "[" * 100_000,
    "long": "chain: [" + "mel," * 20_000 + "]",
    "code": "chain: !!python/object/apply:os.system ['touch harmed']\n",
    "own": "chain: [os:system]\n",
    "circle": "use: circle.yaml\n",
    "empty": "",
    "text": "hello",
    "null": "chain: [mel\0]\n",
    "bytes": "chain: [\xff]\n",
    "plug": "chain: [voxtral.encoder]\nsource: {file: {path: x}}\nsink: {lines: {}}\n",
}


@pytest.fixture(scope="module")
def ten(tmp_path_factory, restless) -> Path:
    """Ten seconds that make the tiny model talk."""
    path = tmp_path_factory.mktemp("ten") / "ten.wav"
    soundfile.write(path, restless(10.0), 16_000, subtype="PCM_16")
    return path


@pytest.fixture
def environment(tiny_folder, monkeypatch) -> None:
    monkeypatch.setenv("VOXTRAL", str(tiny_folder))


@pytest.fixture
def transcribed(tmp_path, capsys, environment) -> Callable[..., tuple[int, dict[str, str], str]]:
    """`transcribed(*files)` is (exit code, text by name, standard error)."""

    def call(*files: Path) -> tuple[int, dict[str, str], str]:
        code = main(["transcribe", *map(str, files), "--format", "json", "-o", str(tmp_path / "out.json")])
        found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        return code, {Path(one["file"]).name: one["text"] for one in found}, capsys.readouterr().err

    return call


def process(
    *words: object, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE,
    strict: tuple[str, ...] = STRICT,
) -> subprocess.Popen[bytes]:  # fmt: skip
    command = [sys.executable, *strict, *PROGRAM, *map(str, words)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)


def run_of(path: object, *sets: str) -> list[str]:
    return ["run", "file", *(w for one in (f"path={path}", *sets) for w in ("--set", f"source.file.{one}"))]


def answer(running: subprocess.Popen[bytes], given: bytes | None = None) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) once it has ended."""
    try:
        out, err = running.communicate(given, timeout=TIMEOUT_S)
    finally:
        running.kill()
    return running.returncode, (out or b"").decode(), (err or b"").decode()


def drain(terminal: int) -> None:
    """Read what is drawn until nobody draws any more."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # how Linux says that the other end is closed
        return


def shell(script: str, *words: str) -> tuple[int, str, str]:
    """A shell's pipeline; `"$@"` in it is this program with `words`."""
    command = ["sh", "-c", script, "sh", sys.executable, *STRICT, *PROGRAM, *words]
    pipe = subprocess.PIPE
    return answer(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe))


# graphs


@pytest.mark.parametrize("name", HARMFUL_YAML)
def test_harmful_graphs_are_refused_by_place(environment, capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.yaml").write_text(HARMFUL_YAML[name], encoding="latin-1")
    assert main(["run", f"{name}.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and all(line.startswith(f"{name}.yaml:") for line in err.splitlines()) and err
    assert not Path("harmed").exists()


# recordings


def test_damaged_recordings_are_named_and_what_they_hold_is_delivered(transcribed, tmp_path, ten, tiny_run):
    whole = ten.read_bytes()
    made = {
        "empty.wav": b"",
        "text.wav": b"this is no audio\n",
        "bytes.wav": bytes(range(256)) * 9,
        "header.wav": whole[:30],
        "cut.wav": whole[: 44 + 2 * 16_000 * 3],
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    soundfile.write(tmp_path / "whole.flac", soundfile.read(ten)[0], 16_000)
    flac = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    files = [tmp_path / name for name in [*made, "cut.flac", "missing.wav"]]
    code, texts, err = transcribed(*files, tmp_path, ten)
    assert code == 1
    assert [line.partition(": ")[0] for line in err.splitlines()] == [*map(str, files), str(tmp_path)]
    assert texts.keys() == {"cut.wav", "cut.flac", "ten.wav"}
    samples = soundfile.read(ten, frames=48_000, dtype="float32")[0]
    assert texts["cut.wav"].split() == str(tiny_run().transcribe(samples)).split() != []
    assert texts["cut.flac"]


def test_any_rate_any_channels_and_any_length_are_heard(transcribed, tmp_path, restless):
    audio = restless(0.5)
    kinds = {"one.wav": (audio[:1], 16_000), "none.wav": (audio[:0], 16_000)}
    kinds |= {f"{rate}.wav": (audio, rate) for rate in (8_000, 11_025, 44_100, 96_000, 192_000)}
    kinds |= {f"{n}.wav": (np.stack([audio] * n, axis=1), 16_000) for n in range(1, 9)}
    for name, (samples, rate) in kinds.items():
        soundfile.write(tmp_path / name, samples, rate)
    code, texts, err = transcribed(*(tmp_path / name for name in kinds))
    assert (code, err) == (0, "") and texts.keys() == kinds.keys()
    assert len({texts[f"{n}.wav"] for n in range(1, 9)}) == 1 and texts["1.wav"]


@posix
def test_any_file_name_will_do(transcribed, tmp_path, ten):
    names = [b"with space.wav", b"with\nline.wav", b"\xff\xfe.wav", "grüße.wav".encode(), b"-dash.wav"]
    paths = [tmp_path / os.fsdecode(name) for name in names]
    for path in paths:
        path.write_bytes(ten.read_bytes()[:20_044])
    code, texts, _ = transcribed(*paths)
    assert code == 1, "all are cut short"
    assert len(texts) == len(names) and len(set(texts.values())) == 1


# weights


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("consolidated.safetensors", lambda data: data[: len(data) // 2], "cut short"),
        ("consolidated.safetensors", lambda data: b"", "the file is empty"),
        ("consolidated.safetensors", lambda data: b"\xff" * 8 + data[8:], "consolidated.safetensors: "),
        ("params.json", lambda data: data.replace(b'"dim": 96', b'"dim": 128'), "belong together?"),
        ("params.json", lambda data: data.replace(b'"dim": 96', b'"dim": 9e99'), "dim should be a whole"),
        ("params.json", lambda data: b"[" * 100_000, "nested too deeply"),
        ("tekken.json", lambda data: b"{}", "'config' is missing"),
        ("tekken.json", lambda data: data.replace(b": 512", b": 51200000"), "default_vocab_size should be"),
    ],
)  # fmt: skip
def test_damaged_weights_are_one_line(environment, capsys, tmp_path, tiny_folder, ten, name, change, says):
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(change((tiny_folder / name).read_bytes()))
    assert main([*run_of(ten), "--weights", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(str(tmp_path)) and says in err and err.count("\n") == 1


# standard input, output and error


@posix
def test_audio_comes_through_pipes_of_any_kind(environment, ten, tiny_run, tmp_path):
    expected = f"{tiny_run().transcribe(ten)}\n"
    wav, fifo = ten.read_bytes(), tmp_path / "pipe"
    os.mkfifo(fifo)
    raw = ("raw_rate=16kHz", "block=80ms")
    threading.Thread(target=fifo.write_bytes, args=(wav,), daemon=True).start()
    pipe = subprocess.PIPE
    assert answer(process(*run_of(fifo))) == (0, expected, "")
    assert answer(process(*run_of("-"), stdin=pipe), wav) == (0, expected, "")
    assert answer(process(*run_of("-", *raw), stdin=pipe), wav[44:]) == (0, expected, "")


@posix
@pytest.mark.parametrize("command", ["run", "transcribe"])
def test_a_bar_on_the_terminal_takes_no_text_from_standard_output(environment, ten, tiny_run, command):
    terminal, stderr = os.openpty()
    words = run_of(ten) if command == "run" else ["transcribe", str(ten)]
    running = process(*words, stderr=stderr)
    os.close(stderr)
    drawn = threading.Thread(target=drain, args=(terminal,))
    drawn.start()
    assert answer(running) == (0, f"{tiny_run().transcribe(ten)}\n", "")
    drawn.join()
    os.close(terminal)


@posix
def test_a_reader_that_has_enough_ends_the_run_in_silence(environment, ten):
    script = '{ "$@"; echo "$?" >&2; } | head -c 1'
    code, out, err = shell(script, *run_of(ten, "block=80ms"))
    assert (code, len(out), err) == (0, 1, "0\n")


@posix
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('"$@" > /dev/full', (1, "", "standard output: cannot write it (no space left on device)")),
        ('"$@" >&-', (1, "", "standard output: there is none")),
        ('"$@" 2>&- >/dev/full', (1, "", "")),
    ],
)
def test_a_standard_stream_that_fails_is_one_line(environment, ten, script, expected):
    if "full" in script and not FULL.exists():
        pytest.skip("no /dev/full here")
    code, out, err = shell(script, *run_of(ten))
    assert (code, out) == expected[:2] and err.startswith(expected[2]) and err.count("\n") <= 1


@posix
def test_a_sink_whose_disk_is_full_stops_no_other(environment, capsys, ten, tiny_run, tmp_path):
    if not FULL.exists():
        pytest.skip("no /dev/full here")
    graph, kept = tmp_path / "two.yaml", tmp_path / "kept.txt"
    sinks = f"sinks: [{{jsonl: {{path: {FULL}}}}}, {{lines: {{path: {kept}}}}}]"
    graph.write_text(f"use: voxtral.yaml\nsource: {{file: {{path: {ten}}}}}\n{sinks}\n")
    assert main(["run", str(graph)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("/dev/full: cannot write it") and err.count("\n") == 1
    assert kept.read_text(encoding="utf-8") == f"{tiny_run().transcribe(ten)}\n"


# signals


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_delivers_all_that_was_heard(environment, ten, tiny_run, tmp_path, number):
    figures = tmp_path / "figures.json"
    running = process(*run_of(ten, "pace=realtime"), "--metrics-json", figures)
    assert running.stdout is not None
    first = running.stdout.read(1)
    running.send_signal(number)
    code, rest, err = answer(running)
    heard_s = json.loads(figures.read_text())["audio_s"]
    samples = soundfile.read(ten, frames=round(heard_s * 16_000), dtype="float32")[0]
    assert 0 < heard_s < 10
    assert (code, first.decode() + rest, err) == (130, f"{tiny_run().transcribe(samples)}\n", "")


@posix
def test_a_second_interrupt_ends_at_once(environment, ten):
    running = process(*run_of(ten, "pace=realtime"))
    assert running.stdout is not None and running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGTERM)
    code, _, err = answer(running)
    assert (code, err) == (130, "")


@posix
@pytest.mark.parametrize("sets", [(), ("raw_rate=16kHz",)], ids=["header", "samples"])
def test_an_interrupt_ends_the_wait_for_a_pipe_that_says_nothing(environment, tmp_path, sets):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    running = process(*run_of(fifo, *sets), strict=())  # an interrupted open() is a leak of Python's own
    writer = writer_of(fifo, running)
    running.send_signal(signal.SIGINT)
    assert answer(running) == (130, "", "")
    os.close(writer)


def writer_of(fifo: Path, reader: subprocess.Popen[bytes]) -> int:
    """The writing end of `fifo`, once `reader` has come to open it."""
    while reader.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            threading.Event().wait(0.01)
    raise AssertionError(answer(reader))
