"""`graphs/mic.yaml` on a real audio path: a recording is played, a microphone hears it, words come out."""

from __future__ import annotations

import difflib
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.run import transcribe
from tests.pipeline.virtual_microphone import virtual_microphone

RECORDING = Path(__file__).parents[2] / "examples" / "audio" / "default.flac"
HEARD = 0.8  # of the words read from the file itself; the path resamples twice and adds its own edges
DRAIN_S = 3.0  # the delay, the device's own latency and the machine's load
PATIENCE_S = 60.0


def test_the_microphone_graph_prints_what_is_played():
    expected = transcribe(RECORDING).text.split()
    with virtual_microphone() as microphone:
        command = [sys.executable, "-m", "pipeline", "run", "mic", "--metrics"]
        with subprocess.Popen(
            command, env=microphone.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            deadline = time.monotonic() + PATIENCE_S
            while not microphone.listeners() and running.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1.0)  # a suspended source needs a moment before its first block
            assert microphone.play(RECORDING).wait(timeout=PATIENCE_S) == 0
            time.sleep(DRAIN_S)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130, err
    share = difflib.SequenceMatcher(None, expected, out.split()).ratio()
    assert share >= HEARD, f"heard {out!r}, expected {' '.join(expected)!r}\n{err}"
