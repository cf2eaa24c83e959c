"""Audio through pipes: raw PCM, WAV as it comes, other formats collected first."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ends.file import FileSource
from pipeline.ends.streams import FORMATS, Feed, wav_reader
from pipeline.errors import SourceError
from stages.stage import pcm

# one step because the scale here ends at 127 and not at 128, half a one for rounding; float32 has 24 bits
STEPS = {"8": 1.5 * 2.0**-7, "16": 1.5 * 2.0**-15, "24": 2.0**-22, "32": 2.0**-23, "64": 2.0**-23}


def noise(samples: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, samples).astype(np.float32)


def encoded(samples: np.ndarray, kind: str) -> bytes:
    """`samples` as raw PCM, by another way than the decoder's: integers written digit by digit."""
    bits, order = int(kind[1:3].rstrip("lb")), "big" if kind.endswith("be") else "little"
    if kind[0] == "f":
        return samples.astype(f"{'>' if order == 'big' else '<'}f{bits // 8}").tobytes()
    offset = 1 << (bits - 1) if kind[0] == "u" else 0
    scaled = np.round(samples.astype(np.float64) * ((1 << (bits - 1)) - 1)).astype(np.int64)
    return b"".join((int(v) + offset).to_bytes(bits // 8, order, signed=not offset) for v in scaled)


class Trickle(io.RawIOBase):
    """A pipe whose writer hands over `sizes` bytes at a time."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes, self.turn = data, sizes, 0

    def read(self, count: int = -1) -> bytes:
        size = min(count, self.sizes[self.turn % len(self.sizes)])
        self.turn += 1
        head, self.data = self.data[:size], self.data[size:]
        return head

    def seekable(self) -> bool:
        return False


@contextmanager
def piped(data: bytes) -> Iterator[BinaryIO]:
    """The reading end of a real pipe into which `data` is being written."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(out, "rb") as stream:
        yield stream
        writer.join()


def heard(source: FileSource) -> np.ndarray:
    source.open()
    return np.concatenate([np.zeros(0, np.float32), *source.blocks()])


def wav(samples: np.ndarray, **how: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, **{"format": "WAV", **how})
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@given(sizes=st.lists(st.integers(100, 999), min_size=1, max_size=9))
@settings(max_examples=10, deadline=None)
def test_raw_pcm_is_decoded_however_it_arrives(kind: str, sizes: list[int]) -> None:
    said = noise(700)
    got = heard(FileSource(Trickle(encoded(said, kind), sizes), raw_rate_hz=8_000, raw_format=kind))
    assert len(got) == len(said)
    assert np.abs(got - said).max() <= STEPS[kind[1:3].rstrip("lb")]


def test_raw_channels_are_interleaved() -> None:
    levels = np.tile(np.array([0.25, 0.75], np.float32), 100)
    stream = io.BytesIO(levels.tobytes())
    got = heard(FileSource(stream, raw_rate_hz=8_000, raw_format="f32le", raw_channels=2))
    np.testing.assert_array_equal(got, np.full(100, 0.5, np.float32))


def test_half_a_raw_sample_at_the_end_is_told() -> None:
    source = FileSource(io.BytesIO(bytes(7)), raw_rate_hz=8_000)
    assert len(heard(source)) == 3
    assert source.notes == ["1 bytes at the end are no whole sample; is the raw format right?"]


def test_raw_infinities_become_silence() -> None:
    data = np.array([1e300, np.nan, 0.5]).tobytes()
    source = FileSource(io.BytesIO(data), raw_rate_hz=8_000, raw_format="f64le")
    np.testing.assert_array_equal(heard(source), np.array([0, 0, 0.5], np.float32))
    assert source.notes[0].startswith("2 broken samples")


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_wav_from_a_pipe_equals_wav_from_a_file(subtype: str, form: str, tmp_path: Path) -> None:
    data = wav(noise(5_000), subtype=subtype, format=form)
    (tmp_path / "a.wav").write_bytes(data)
    with piped(data) as stream:
        got = heard(FileSource(stream))
    np.testing.assert_array_equal(got, heard(FileSource(tmp_path / "a.wav")))


def test_wav_is_heard_before_its_writer_ends() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb") as stream, os.fdopen(into, "wb", 0) as pipe:
        pipe.write(wav(noise(2_000))[: 44 + 2 * 1_280])
        source = FileSource(stream, block_ms=80)
        assert source.open() == pcm(16_000)
        assert len(next(source.blocks())) == 1_280
        source.close()


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3", "AIFF", "CAF"])
def test_other_formats_from_a_pipe_equal_those_from_a_file(form: str, tmp_path: Path) -> None:
    data = wav(noise(40_000), format=form)
    (tmp_path / "a").write_bytes(data)
    with piped(data) as stream:
        got = heard(FileSource(stream))
    np.testing.assert_array_equal(got, heard(FileSource(tmp_path / "a")))


def test_a_compressed_wav_from_a_pipe_is_collected_first(tmp_path: Path) -> None:
    data = wav(noise(4_000), subtype="IMA_ADPCM")
    (tmp_path / "a.wav").write_bytes(data)
    with piped(data) as stream:
        got = heard(FileSource(stream))
    np.testing.assert_array_equal(got, heard(FileSource(tmp_path / "a.wav")))


@pytest.mark.parametrize("size", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xf0\xff\xff\x7f"])
def test_a_wav_stream_of_unknown_length_ends_with_its_pipe(size: bytes) -> None:
    data = bytearray(wav(noise(3_000)))
    data[4:8] = data[40:44] = size
    with piped(bytes(data)) as stream:
        assert len(heard(FileSource(stream))) == 3_000


def test_a_cut_wav_stream_gives_what_came_and_then_an_error() -> None:
    with piped(wav(noise(3_000))[: 44 + 2_001]) as stream:
        source = FileSource(stream)
        source.open()
        blocks = source.blocks()
        assert len(next(blocks)) == 1_000
        with pytest.raises(SourceError, match="ends after 2001 of 6000 bytes"):
            next(blocks)


def test_chunks_before_and_after_the_samples_are_skipped() -> None:
    data = wav(noise(100))
    odd = b"LIST\x05\0\0\0hello\0"
    with piped(data[:12] + odd + data[12:] + odd) as stream:
        assert len(heard(FileSource(stream))) == 100


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVEfmt ", b"a text\n", b"\0\1\2" * 500])
def test_what_is_no_audio_is_a_source_error(data: bytes) -> None:
    with piped(data) as stream, pytest.raises(SourceError) as fault:
        heard(FileSource(stream))
    assert "\n" not in str(fault.value)


@given(data=st.binary(max_size=300), keep=st.integers(12, 60))
@settings(max_examples=100, deadline=None)
def test_a_corrupt_wav_header_is_read_or_refused_within_bounds(data: bytes, keep: int) -> None:
    feed = Feed(io.BytesIO(wav(noise(50))[:keep] + data))
    try:
        reader = wav_reader(feed, "a pipe")
        if reader is not None:
            assert sum(len(chunk) for chunk in reader.chunks()) <= 400
    except SourceError as fault:
        assert "\n" not in str(fault)
    finally:
        feed.close()


@pytest.mark.parametrize("said", [b"", wav(noise(2_000))[:2_000]])
def test_close_frees_a_reader_of_a_silent_pipe(said: bytes) -> None:
    out, into = os.pipe()
    ended: list[str] = []

    def read() -> None:
        for _ in source.blocks():
            ended.append("block")
        ended.append("end")  # and no complaint that the header had promised more

    with os.fdopen(out, "rb") as stream, os.fdopen(into, "wb", 0) as pipe:
        pipe.write(said)
        source = FileSource(stream, raw_rate_hz=None if said else 8_000)
        source.open()
        reader = threading.Thread(target=read)
        reader.start()
        source.close()
        reader.join(10)
        assert ended == ["end"]


def test_a_feed_reads_ahead_no_further_than_its_bound() -> None:
    stream = Trickle(bytes(100 << 16), [1 << 16])
    feed = Feed(stream)
    assert feed.take(10) == bytes(10)
    assert len(stream.data) >= 90 << 16
    feed.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_a_stream(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "talk.wav")
    writer = threading.Thread(target=(tmp_path / "talk.wav").write_bytes, args=(wav(noise(3_000)),))
    writer.start()
    assert len(heard(FileSource(tmp_path / "talk.wav"))) == 3_000
    writer.join()


REPORT = """
import sys
from pipeline.ends.{module} import {call} as source
s = source({arguments})
print(s.open().rate, sum(len(b) for b in s.blocks()), s.label)
"""


def in_a_process(data: bytes, module: str, call: str, arguments: str) -> str:
    code = REPORT.format(module=module, call=call, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().strip()


def test_a_dash_is_standard_input() -> None:
    assert in_a_process(wav(noise(9_000)), "file", "FileSource", "'-'") == "16000 9000 standard input"
