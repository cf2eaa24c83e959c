"""The microphone, through a real audio path: a recording played into PulseAudio, ALSA, PortAudio."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.ends.mic import Backlog, MicSource
from pipeline.errors import GraphError
from tests.pipeline.virtual_microphone import VirtualMicrophone, virtual_microphone

RATE_HZ = 16_000
SAMENESS = 0.9  # normalised correlation; half a sample of delay costs 0.03, other audio has 0.1
SLICE = RATE_HZ // 4  # compared one by one: a busy machine may lose a few milliseconds between two of them
LIST = "from pipeline.ends.mic import list_devices; print(list_devices())"
NO_DEVICE = "no input device found\n"
CHILD = """
import sys, threading
import numpy as np
from pipeline.ends.mic import MicSource
from pipeline.errors import SourceError
source = MicSource({options})
port = source.open()
heard = []
def stop():
    if sys.stdin.readline():
        source.close()
threading.Thread(target=stop, daemon=True).start()
fault = ""
try:
    for block in source.blocks():
        if not heard:
            print("hearing", port.rate, source.label, flush=True)
        heard.append(block)
except SourceError as error:
    fault = str(error)
np.save({target!r}, np.concatenate(heard))
print("fault:", fault, flush=True)
"""


@pytest.fixture(scope="module")
def microphone() -> Iterator[VirtualMicrophone]:
    with virtual_microphone() as device:
        yield device


class Listener:
    """A process that listens to a virtual microphone through `MicSource` until told to stop."""

    def __init__(self, device: VirtualMicrophone, folder: Path, options: str = ""):
        self.target = folder / "heard.npy"
        code = CHILD.format(options=options, target=str(self.target))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=device.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # ALSA and PortAudio talk to it
            text=True,
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()

    def end(self, order: str | None = "stop\n") -> tuple[np.ndarray, str]:
        """All that was heard, and the error that ended it, once stopped or of its own accord."""
        out, complaints = self.process.communicate(order, timeout=60)
        assert self.process.returncode == 0, complaints
        return np.load(self.target), out.strip().removeprefix("fault:").strip()


def recording(folder: Path) -> tuple[Path, np.ndarray]:
    """Two seconds of noise, whose correlation has one peak; below 2 kHz half a sample of delay is little."""
    spectrum = np.fft.rfft(0.2 * np.random.default_rng(5).standard_normal(2 * RATE_HZ))
    spectrum[len(spectrum) // 4 :] = 0
    samples = np.fft.irfft(spectrum).astype(np.float32)
    soundfile.write(folder / "said.wav", samples, RATE_HZ, subtype="FLOAT")
    return folder / "said.wav", samples


def sameness(heard: np.ndarray, said: np.ndarray) -> float:
    """The largest normalised cross-correlation of `said` with any stretch of `heard`."""
    size = 1 << (len(heard) + len(said)).bit_length()
    product = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(said, size).conj(), size)
    place = int(np.argmax(product[: len(heard)]))
    stretch = heard[place : place + len(said)]
    return float(product[place] / (np.linalg.norm(stretch) * np.linalg.norm(said) + 1e-9))


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `code` where `environment` is in force from the start: PortAudio looks at it once."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_what_is_played_is_heard(microphone: VirtualMicrophone, tmp_path: Path) -> None:
    path, said = recording(tmp_path)
    listener = Listener(microphone, tmp_path)
    assert listener.greeting == "hearing 16000 microphone 'default'"
    assert microphone.listeners() == 1
    assert microphone.play(path).wait(30) == 0
    heard, fault = listener.end()
    assert fault == ""
    alike = [sameness(heard, said[n : n + SLICE]) for n in range(0, len(said), SLICE)]
    assert sorted(alike)[2] > SAMENESS, alike


def test_another_rate_and_one_channel_can_be_asked_for(microphone: VirtualMicrophone, tmp_path: Path) -> None:
    listener = Listener(microphone, tmp_path, "device='pulse', rate_hz=48_000, channel=2, block_ms=20")
    assert listener.greeting == "hearing 48000 microphone 'pulse'"
    heard, fault = listener.end()
    assert fault == "" and len(heard) % 960 == 0


def test_an_unknown_device_is_answered_with_those_there_are(microphone: VirtualMicrophone) -> None:
    code = "from pipeline.ends.mic import MicSource; MicSource(device='banana').open()"
    complaint = python(code, microphone.environment).stderr.splitlines()[-1]
    assert "microphone 'banana': there is no such input device; there are 0: 'pulse'," in complaint


def test_the_devices_are_listed(microphone: VirtualMicrophone) -> None:
    listed = python(LIST, microphone.environment)
    assert [line.split()[:3] for line in listed.stdout.splitlines()][1] == ["*", "1", "default"]


def test_an_unplugged_microphone_ends_with_what_was_heard(tmp_path: Path) -> None:
    with virtual_microphone() as device:
        path, _ = recording(tmp_path)
        listener = Listener(device, tmp_path)
        assert device.play(path).wait(30) == 0
        device.unplug()
        heard, fault = listener.end(None)
    assert len(heard) > RATE_HZ and heard.any()
    assert fault.startswith("microphone 'default' stopped delivering audio; was it unplugged")


def test_without_any_device_the_error_says_what_to_look_at(tmp_path: Path) -> None:
    pytest.importorskip("sounddevice", exc_type=OSError)
    nothing = {"PATH": "", "HOME": str(tmp_path), "PULSE_SERVER": f"unix:{tmp_path}/none"}
    if python(LIST, nothing).stdout != NO_DEVICE:
        pytest.skip("this machine has a microphone of its own")
    complaint = python("from pipeline.ends.mic import MicSource; MicSource().open()", nothing).stderr
    assert "SourceError: microphone: no input device found; is one plugged in" in complaint


def test_what_a_full_backlog_drops_comes_out_as_silence() -> None:
    backlog = Backlog(blocks=2)
    for number in range(1, 6):
        backlog.put(np.full((10, 1), number, np.float32))
    assert backlog.lost == 30
    first, second = backlog.get(0.0), backlog.get(0.0)
    assert first is not None and second is not None and (first[1], second[1]) == (0, 0)
    assert backlog.get(0.0) is None
    backlog.put(np.full((10, 1), 6, np.float32))
    after = backlog.get(0.0)
    assert after is not None and after[0][0, 0] == 6 and after[1] == 30


@pytest.mark.parametrize("missing", ["package", "library"])
def test_a_missing_portaudio_names_its_cure(missing: str, tmp_path: Path) -> None:
    fault = "ModuleNotFoundError('no')" if missing == "package" else "OSError('PortAudio library not found')"
    (tmp_path / "sounddevice.py").write_text(f"raise {fault}\n")
    code = "from pipeline.ends.mic import list_devices; list_devices()"
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = python(code, {"PYTHONPATH": path})
    cure = {"package": "pip install 'headrace[mic]'", "library": "PortAudio library is missing; "}[missing]
    assert cure in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [{"overrun": "wait"}, {"block_ms": 0}, {"window_s": 0.01}, {"window_s": float("nan")}, {"channel": 0}],
)
def test_senseless_options_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(GraphError):
        MicSource(**options)  # type: ignore[arg-type]
