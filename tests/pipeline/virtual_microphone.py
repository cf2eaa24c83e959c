"""A microphone made of software: a private PulseAudio server whose default input is what is played into it.

Nothing of the machine's own sound is touched: server, socket, configuration and ALSA's route to it live in a
temporary folder, and only processes given `environment` see them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 10.0  # a server that has not answered by then does not start here
SINK = "headrace_speaker"
ASOUNDRC = """
pcm.!default { type pulse }
ctl.!default { type pulse }
"""


@dataclass(frozen=True)
class VirtualMicrophone:
    """`environment` makes a process hear it; `play` speaks into it; `unplug` ends its server."""

    environment: dict[str, str]
    server: subprocess.Popen[bytes]

    def play(self, path: str | Path) -> subprocess.Popen[bytes]:
        """Start playing an audio file into it."""
        return subprocess.Popen(["paplay", f"--device={SINK}", str(path)], env=self.environment)

    def listeners(self) -> int:
        """How many programs are recording from it now."""
        listed = _pactl(self.environment, "list", "short", "source-outputs")
        return len(listed.stdout.splitlines())

    def unplug(self) -> None:
        self.server.kill()
        self.server.wait()


def missing_for_virtual_microphone() -> str:
    """What this machine lacks for one; empty if nothing."""
    programs = [name for name in ("pulseaudio", "paplay", "pactl") if shutil.which(name) is None]
    try:
        import sounddevice  # noqa: F401
    except (ModuleNotFoundError, OSError) as error:
        programs.append(f"PortAudio ({error})")
    if not list(Path("/usr/lib").glob("**/alsa-lib/libasound_module_pcm_pulse.so")):
        programs.append("ALSA's pulse plugin (libasound2-plugins)")
    return ", ".join(programs)


@contextmanager
def virtual_microphone() -> Iterator[VirtualMicrophone]:
    """A running one, or a skip that says by name what is missing here."""
    lacking = missing_for_virtual_microphone()
    if lacking:
        pytest.skip(f"no virtual microphone: missing {lacking}")
    with tempfile.TemporaryDirectory(prefix="headrace-mic-") as folder:
        environment = _environment(Path(folder))
        nothing = subprocess.DEVNULL
        server = subprocess.Popen(_command(), env=environment, stdin=nothing, stderr=nothing)
        try:
            _wait_for(server, environment)
            yield VirtualMicrophone(environment, server)
        finally:
            server.terminate()
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _environment(folder: Path) -> dict[str, str]:
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    (folder / ".asoundrc").write_text(ASOUNDRC)
    return {
        **os.environ,
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CONFIG_HOME": str(folder / ".config"),
        "PULSE_RUNTIME_PATH": str(runtime / "pulse"),
        "PULSE_SERVER": f"unix:{runtime}/pulse/native",
        "DBUS_SESSION_BUS_ADDRESS": "disabled:",
    }


def _command() -> list[str]:
    return [
        "pulseaudio",
        "-n",  # no configuration but this
        "--daemonize=no",
        "--exit-idle-time=-1",
        "--use-pid-file=no",
        "--disable-shm=yes",
        "--load=module-native-protocol-unix",
        f"--load=module-null-sink sink_name={SINK} rate=48000 channels=2",
    ]


def _wait_for(server: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.skip(f"no virtual microphone: pulseaudio ended with code {server.returncode}")
        if _pactl(environment, "set-default-source", f"{SINK}.monitor").returncode == 0:
            return
        time.sleep(0.05)
    pytest.skip(f"no virtual microphone: pulseaudio did not answer within {START_S:.0f} s")


def _pactl(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["pactl", *arguments], env=environment, capture_output=True, text=True, check=False)
