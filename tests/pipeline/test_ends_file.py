"""Recordings: every format soundfile writes, every way a file can be wrong."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import VirtualTime
from pipeline.ends.file import FileSource
from pipeline.errors import GraphError, SourceError
from stages.stage import pcm

LOSSLESS = 2.0**-5  # 8-bit types step by 2**-7, and the logarithmic ones by 2**-5 near full scale
LOSSY_CORRELATION = 0.95  # what the poorest keeps of a tone; a wrong rate or byte order leaves nothing
CODEC_DELAY = 0.05  # seconds by which a lossy codec may shift or pad
TELEPHONE = {"GSM610", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32"}
LOSSY = {"MPEG_LAYER_III", "VORBIS", "OPUS", "DPCM_8"} | TELEPHONE
DELTAS = ("IMA", "MS_", "G7", "DWVW")  # exact enough to be heard, in steps that vary
OWN_RATES = {"WVE": 8_000, "VOC": 8_000, "XI": 44_100}  # the first and last know no other, VOC only 1e6 / n
UNWRITABLE = {"MPEG_LAYER_I", "MPEG_LAYER_II", "DWVW_12"}  # libsndfile reads them and cannot write them
NEEDS_A_NAME = {"SD2", "RAW"}  # SD2 keeps its header in another file; RAW has none


def tone(seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * time) * np.minimum(1, time * 10)).astype(np.float32)


def heard(source: FileSource) -> np.ndarray:
    """All of a source, and its rate checked to be stated."""
    assert source.open().kind == "pcm"
    return np.concatenate([np.zeros(0, np.float32), *source.blocks()])


def heard_until_fault(source: FileSource) -> tuple[int, str]:
    """Samples delivered, and the error after them."""
    source.open()
    samples = 0
    with pytest.raises(SourceError) as fault:
        for block in source.blocks():
            samples += len(block)
    return samples, str(fault.value)


def written(
    folder: Path, samples: np.ndarray, rate: int = 16_000, name: str = "talk.wav", **how: str
) -> Path:
    path = folder / name
    soundfile.write(path, samples, rate, **how)
    return path


def combinations() -> list[tuple[str, str]]:
    """Containers and subtypes that can be written here, and found again without a file name."""
    pairs = [(f, s) for f in soundfile.available_formats() for s in soundfile.available_subtypes(f)]
    pairs.remove(("WAV", "MPEG_LAYER_III"))  # libsndfile reads it and cannot write it
    return [(f, s) for f, s in pairs if f not in NEEDS_A_NAME and s not in UNWRITABLE]


@pytest.mark.parametrize(("container", "subtype"), combinations())
def test_every_format_soundfile_writes_is_heard(container: str, subtype: str, tmp_path: Path) -> None:
    rate = OWN_RATES.get(container, 8_000 if subtype in TELEPHONE else 16_000)
    said = tone(rate=rate)
    path = written(tmp_path, said, rate, "talk", format=container, subtype=subtype)
    source = FileSource(path)
    got = heard(source)
    assert source.open().rate == rate
    assert len(said) <= len(got) <= len(said) + CODEC_DELAY * rate
    if subtype in LOSSY or container == "SDS":  # libsndfile forgets the last 40 samples when it writes SDS
        assert np.corrcoef(said, got[: len(said)])[0, 1] > LOSSY_CORRELATION
    elif not subtype.startswith(DELTAS):
        assert np.abs(said - got[: len(said)]).max() < LOSSLESS
    source.close()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_usual_rate_is_stated_and_heard(rate: int, tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, tone(0.1, rate), rate))
    assert len(heard(source)) == round(0.1 * rate)
    assert source.open() == pcm(rate)
    source.close()


@pytest.mark.parametrize("channels", range(1, 9))
def test_channels_are_averaged_or_chosen(channels: int, tmp_path: Path) -> None:
    levels = np.arange(1, channels + 1, dtype=np.float32) / 16
    path = written(tmp_path, np.tile(levels, (400, 1)), subtype="FLOAT")
    np.testing.assert_allclose(heard(FileSource(path)), levels.mean(), rtol=1e-6)
    np.testing.assert_array_equal(heard(FileSource(path, channel=channels)), levels[-1])


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@given(block_ms=st.floats(1.0, 900.0))
@settings(max_examples=20, deadline=None)
def test_samples_do_not_depend_on_the_block(suffix: str, block_ms: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), tone(1.3), name=f"talk.{suffix}")
        whole = heard(FileSource(path))
        source = FileSource(path, block_ms=block_ms)
        source.open()
        blocks = list(source.blocks())
    size = max(1, round(block_ms * 16))
    assert all(len(block) == size for block in blocks[:-1]) and 0 < len(blocks[-1]) <= size
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_reading_does_not_seek(tmp_path: Path) -> None:
    # soundfile seeks after every read, which this codec cannot; once its own reading passes, the
    # workaround in `_Decoder` may go
    path = written(tmp_path, tone(), name="talk.aiff", subtype="DWVW_16")
    with soundfile.SoundFile(path) as plain, pytest.raises(soundfile.SoundFileError):
        plain.read(8_000)
    assert len(heard(FileSource(path))) == 16_000


def test_a_paced_file_keeps_the_sample_clock(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, tone(2.0, 44_100), 44_100), block_ms=37, pace="8x")
    source.clock = clock = VirtualTime(100.0)
    source.open()
    samples = 0
    for block in source.blocks():
        samples += len(block)
        assert clock.now() == pytest.approx(100.0 + samples / 44_100 / 8, abs=1e-9)
    assert samples == 88_200


def test_a_slow_reader_does_not_delay_later_blocks(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, tone(2.0)), block_ms=80, pace="realtime")
    source.clock = clock = VirtualTime()
    source.open()
    for number, _ in enumerate(source.blocks()):
        if number == 3:
            clock.advance(1.0)
    assert clock.now() == pytest.approx(2.0)


def test_duration_is_known_once_opened(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, tone(1.5)))
    assert source.duration_s is None
    source.open()
    assert source.duration_s == 1.5
    source.close()
    source.close()


def test_a_recording_without_samples_gives_no_blocks(tmp_path: Path) -> None:
    assert len(heard(FileSource(written(tmp_path, np.zeros(0, np.float32))))) == 0


def test_one_sample_is_one_block(tmp_path: Path) -> None:
    assert heard(FileSource(written(tmp_path, np.full(1, 0.5, np.float32), subtype="FLOAT"))) == [0.5]


def test_broken_samples_become_silence_and_are_told(tmp_path: Path) -> None:
    samples = tone(0.1)
    samples[[3, 50, 70, 71]] = [np.nan, np.inf, -np.inf, 1e30]
    source = FileSource(written(tmp_path, samples, subtype="FLOAT"))
    got = heard(source)
    assert np.isfinite(got).all() and not got[[3, 50, 70, 71]].any()
    assert source.notes == ["4 broken samples (not finite, or absurdly loud) replaced by silence"]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "rf64"])
def test_what_a_truncated_file_holds_is_delivered_before_the_error(suffix: str, tmp_path: Path) -> None:
    noise = (0.1 * np.random.default_rng(7).standard_normal(48_000)).astype(np.float32)
    path = written(tmp_path, noise, name=f"talk.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    samples, fault = heard_until_fault(FileSource(path))
    assert 24_000 <= samples <= 33_000
    assert fault.startswith(f"{path}: damaged or cut short after ") and "\n" not in fault


def test_a_wav_whose_writer_was_killed_is_heard_whole(tmp_path: Path) -> None:
    path = written(tmp_path, tone())
    data = bytearray(path.read_bytes())
    data[4:8], data[40:44] = b"\x08\0\0\0", b"\0\0\0\0"  # what libsndfile leaves before it knows the length
    path.write_bytes(data)
    assert len(heard(FileSource(path))) == 16_000


def test_a_wav_of_unknown_length_is_no_truncated_one(tmp_path: Path) -> None:
    path = written(tmp_path, tone())
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what ffmpeg writes into a pipe
    path.write_bytes(data)
    assert len(heard(FileSource(path))) == 16_000


def complaint(path: object, **options: object) -> str:
    with pytest.raises(SourceError) as fault:
        heard(FileSource(path, **options))  # type: ignore[arg-type]
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_a_missing_file_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    meant = written(tmp_path, tone(0.1))
    assert complaint(tmp_path / "tlak.wav").endswith(f"there is no such file; did you mean {str(meant)!r}?")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "no" / "talk.wav").endswith(f"nor a folder {str(tmp_path / 'no')!r}")


def test_a_folder_an_empty_file_and_a_text_are_told_apart(tmp_path: Path) -> None:
    assert "it is a folder" in complaint(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert complaint(tmp_path / "empty.wav").endswith("the file is empty")
    (tmp_path / "notes.wav").write_text("Dear diary, today I recorded nothing at all.\n")
    assert "it holds text, not audio (it begins 'Dear diary" in complaint(tmp_path / "notes.wav")


def test_a_foreign_format_comes_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "my talk.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A \0\0\2\0" + bytes(200))
    assert f"ffmpeg -i '{path}' -ac 1 -ar 16000" in complaint(path)


def test_a_raw_file_needs_its_format_said(tmp_path: Path) -> None:
    path = tmp_path / "talk.raw"
    path.write_bytes((tone(0.1) * 32767).astype("<i2").tobytes())
    assert "raw_rate, raw_format and raw_channels" in complaint(path)
    assert len(heard(FileSource(path, raw_rate_hz=16_000))) == 1_600


@pytest.mark.skipif(os.name != "posix", reason="devices are files on POSIX only")
def test_a_device_is_no_recording() -> None:
    assert "it is a device" in complaint("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, tone(0.1))
    path.chmod(0)
    assert "permission denied" in complaint(path)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("names are text here")
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.wav"))
    written(tmp_path, tone(0.1)).rename(path)
    assert len(heard(FileSource(path))) == 1_600


def test_absurd_headers_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, tone(0.1))
    data = bytearray(path.read_bytes())
    data[24:28] = (2_000_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    assert "its header says 2000000000 Hz" in complaint(path)


def test_a_channel_the_file_lacks_is_refused(tmp_path: Path) -> None:
    assert "channel 3 is not one of its 1" in complaint(written(tmp_path, tone(0.1)), channel=3)


@pytest.mark.parametrize(
    "options",
    [
        {"pace": "fast"},
        {"pace": "0x"},
        {"pace": -1},
        {"pace": "nan"},
        {"block_ms": 0},
        {"block_ms": 1e9},
        {"channel": 0},
        {"raw_rate_hz": 1},
        {"raw_rate_hz": 8000, "raw_format": "s17le"},
    ],
)
def test_senseless_options_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(GraphError):
        FileSource("talk.wav", **options)  # type: ignore[arg-type]


def test_close_from_another_thread_ends_a_paced_file(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, tone(30.0, 8_000), 8_000), block_ms=20_000, pace="realtime")
    source.open()
    blocks: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: blocks.extend(source.blocks()))
    reader.start()
    source.close()
    reader.join(10)
    assert not reader.is_alive() and not blocks


def audio_bytes() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        suffixes = ("wav", "flac", "ogg", "mp3", "aiff", "caf", "w64", "au")
        return {s: written(Path(folder), tone(0.3), name=f"t.{s}").read_bytes() for s in suffixes}


AUDIO = audio_bytes()


@given(
    suffix=st.sampled_from(sorted(AUDIO)),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    head=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_corrupt_bytes_end_in_samples_or_a_source_error(
    suffix: str, keep: float, flips: list[tuple[int, int]], head: bool
) -> None:
    data = bytearray(AUDIO[suffix][: max(1, round(len(AUDIO[suffix]) * keep))])
    for place, value in flips:
        data[place % min(len(data), 64 if head else len(data))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"talk.{suffix}"
        path.write_bytes(data)
        source = FileSource(path)
        try:
            got = heard(source)
        except SourceError as fault:
            assert "\n" not in str(fault)
        else:
            assert np.isfinite(got).all() and len(got) <= 1_000 * len(data)
        finally:
            source.close()
