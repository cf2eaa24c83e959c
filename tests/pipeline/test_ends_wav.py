"""The wav sink: it keeps what it is given, and says what it could not keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.ends.file import FileSource, Wav
from pipeline.errors import GraphError, SinkError
from stages.packet import Packet, Span
from stages.stage import pcm
from tests.pipeline.test_ends_file import heard, tone


def block(samples: np.ndarray, start: int = 0) -> Packet:
    return Packet(samples[None], (Span(start, start + len(samples)),))


def test_wav_keeps_what_it_is_given(tmp_path: Path) -> None:
    said = tone()
    sink = Wav(path=tmp_path / "kept.wav", subtype="FLOAT")
    sink.open(pcm(16_000))
    for start in range(0, len(said), 700):
        sink.write(block(said[start : start + 700], start))
        sink.cut(start)
    sink.close()
    sink.close()
    np.testing.assert_array_equal(heard(FileSource(tmp_path / "kept.wav")), said)


def test_wav_clips_and_does_not_wrap(tmp_path: Path) -> None:
    sink = Wav(path=tmp_path / "loud.wav")
    sink.open(pcm(8_000))
    sink.write(block(np.array([2.0, -2.0], np.float32)))
    sink.close()
    np.testing.assert_allclose(heard(FileSource(tmp_path / "loud.wav")), [1, -1], atol=1e-4)


def test_wav_refuses_a_type_it_has_not() -> None:
    with pytest.raises(GraphError, match="PCM_17"):
        Wav(path="x.wav", subtype="PCM_17")


def test_wav_without_its_folder_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"create the folder .*no.* first"):
        Wav(path=tmp_path / "no" / "x.wav").open(pcm(8_000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_wav_on_a_full_disk_is_a_sink_error() -> None:
    sink = Wav(path="/dev/full")
    with pytest.raises(SinkError, match="/dev/full: cannot"):
        sink.open(pcm(16_000))
        for _ in range(100):
            sink.write(block(tone()))
    sink.close()


FILLING = """
import resource, signal, sys
import numpy as np
from pipeline.ends.file import Wav
from pipeline.errors import SinkError
from stages.packet import Packet, Span
from stages.stage import pcm
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sink = Wav(path=sys.argv[1])
sink.open(pcm(16_000))
try:
    for n in range(20):
        sink.write(Packet(np.full((1, 8_000), 0.1, np.float32), (Span(8_000 * n, 8_000 * n + 8_000),)))
except SinkError as error:
    print(error)
sink.close()
"""


@pytest.mark.skipif(os.name != "posix", reason="file size limits are set on POSIX only")
def test_a_disk_that_fills_up_leaves_a_wav_of_what_went_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILLING, str(tmp_path / "kept.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/kept.wav: cannot write it") and done.stderr == ""
    assert 40_000 <= len(heard(FileSource(tmp_path / "kept.wav"))) <= 50_000
