"""Whole runs of the built-in model on compiled kernels: long, two at once, interrupted, on a new machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kernels import BackendMissing
from pipeline.ends.memory import MemorySource
from pipeline.opening import open_chosen
from pipeline.run import Run, load
from tests.pipeline.test_soak import Counting

pytestmark = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "graphs" / "models" / "small-voxtral"
DEFAULT = ROOT / "graphs" / "audio" / "default.flac"
SPOKEN = "i want a double shot twenty ounce dark roast cappuccino"
MINUTES, BLOCK_S = 10, 10
GROWTH_BYTES = 5 << 20  # a heap grows by 2.5 MB at once, as on the portable backend; 1 kB a token were 6 MB
PATIENCE_S = 120.0
SOON_S = 20.0  # to end after an interrupt, on a machine that is busy: what was heard is finished


@pytest.fixture(scope="module", autouse=True)
def compiled():
    try:
        return open_chosen("cpu")
    except BackendMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture
def run() -> Run:
    return load("file", params={"backend": "cpu", "weights": str(MODEL)})


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Ten minutes of what ships, again and again."""
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    soundfile.write(path, spoken(60.0 * MINUTES), 16_000)
    return path


def spoken(seconds: float) -> np.ndarray:
    samples, rate = soundfile.read(DEFAULT, dtype="float32")
    assert rate == 16_000
    return np.resize(samples, round(seconds * rate))


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", *map(str, words), "--backend", "cpu"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux
def test_ten_minutes_of_speech_leave_memory_flat(run):
    held, ears = [], Counting()
    audio = spoken(60.0 * MINUTES)

    def blocks():
        for at in range(0, len(audio), BLOCK_S * 16_000):
            held.append(resident())
            yield audio[at : at + BLOCK_S * 16_000]

    failed = run.batch([(MemorySource(blocks(), 16_000), [(run.text_node, ears)])])
    assert not failed and ears.pieces > 10 * MINUTES, "the model spoke to the end"
    settled = held[len(held) // 5 :]  # the windows are full, and every length of pass has been seen
    growth = max(settled[-6:]) - max(settled[:6])
    assert growth < GROWTH_BYTES, f"resident memory grew by {growth} bytes in {MINUTES} minutes: {held}"


def test_two_processes_on_all_cores_both_finish_and_say_the_same():
    both = [start("run", "file") for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in both]
    assert said == [f"{SPOKEN}\n"] * 2 and [process.returncode for process in both] == [0, 0]


@posix
@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.05, 0.3])
def test_an_interrupt_in_the_middle_of_a_step_delivers_what_was_heard(long, after_s):
    process = start("run", "file", "--set", f"source.file.path={long}")
    assert process.stdout is not None
    first = process.stdout.read(1)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 130 and "Traceback" not in err, err
    words, known = (first + rest).split(), SPOKEN.split()
    assert words and set(words) <= set(known)
    pairs = {*pairwise(known), (known[-1], known[0])}
    assert sum(pair in pairs for pair in pairwise(words)) >= 0.9 * (len(words) - 1), "nothing is missing"


@posix
def test_a_second_interrupt_ends_a_run_at_once(long):
    process = start("run", "file", "--set", f"source.file.path={long}")
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 130 and "Traceback" not in err, err


@linux
def test_the_first_run_says_that_it_compiles_and_the_second_has_nothing_to_say(tmp_path):
    said = []
    for _ in range(2):
        process = start("run", "file", XDG_CACHE_HOME=str(tmp_path), HEADRACE_CPU_ISA="generic", VOXTRAL="")
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, f"{SPOKEN}\n"), err
        said.append([line for line in err.splitlines() if line.startswith("cpu: ")])
    assert said[0][0].startswith("cpu: compiling kernels for generic")
    assert said[0][1].startswith("cpu: compiled in ") and said[1] == []
    assert len(list((tmp_path / "headrace").glob("generic-*.o"))) == 1


@linux
def test_kernels_that_cannot_be_kept_are_compiled_and_that_is_said(tmp_path):
    (tmp_path / "headrace").write_text("a file stands where the folder would")
    process = start("run", "file", XDG_CACHE_HOME=str(tmp_path), HEADRACE_CPU_ISA="generic")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, f"{SPOKEN}\n")
    assert f"{tmp_path / 'headrace'} cannot be written" in err
