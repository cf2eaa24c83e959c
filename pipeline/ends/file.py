"""Audio files: all that soundfile reads, standard input, and WAV files to keep. The one door to soundfile."""

from __future__ import annotations

import os
import re
import shlex
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile  # type: ignore[import-untyped]

from pipeline.clock import RealTime, Time
from pipeline.ends.blocks import Mixdown, block_samples, paced, sized, speed
from pipeline.ends.paths import cure, readable, reason
from pipeline.ends.streams import (
    CHANNELS,
    RATES_HZ,
    UNKNOWN_LENGTH,
    Feed,
    Raw,
    RawReader,
    standard_input,
    wav_reader,
)
from pipeline.errors import GraphError, SinkError, SourceError
from stages.packet import Packet
from stages.stage import Port, pcm

DECODE_FRAMES = 8192  # always the same, so that no codec's output depends on the block size asked for
SPOOL_BYTES = 1 << 32  # what a pipe may leave in the temporary folder before we stop believing it
ENDLESS_FRAMES = 1 << 62  # libsndfile's lengths near 2**63 mean that it does not know
MP3_SLACK_FRAMES = 4 * 1152  # an MP3 without an index has its length estimated
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page: header, table, segments
SLACK_BYTES = 8  # writers disagree about counting their own chunk headers


class Reader(Protocol):
    """Decoded audio: `chunks` gives [frames, channels] float32, and `SourceError` after the last good one."""

    rate_hz: int
    channels: int
    duration_s: float | None
    notes: list[str]

    def chunks(self) -> Iterator[np.ndarray]: ...

    def close(self) -> None: ...


class FileSource:
    """A recording, or standard input.

    Parameters
    ----------
    path : a file, a named pipe, `-` for standard input, or an open binary stream. A pipe's PCM and WAV are
        decoded as they come; other formats are first collected in a temporary file
    block_ms : audio per block; by default 10 s, or 80 ms where `pace` is not `asap`
    pace : `asap`, `realtime`, or a factor such as `8x`
    channel : the one to hear, counted from 1; by default the mean of all
    raw_rate_hz, raw_format, raw_channels : what headerless PCM is; with a rate, the input is taken for that

    Raises
    ------
    GraphError    at once, if an option makes no sense
    SourceError   from `open`, or from `blocks` after the last good block, saying what is wrong and what to do
    """

    live = False
    lost = 0

    def __init__(
        self,
        path: str | Path | BinaryIO,
        *,
        block_ms: float | None = None,
        pace: str | float = "asap",
        channel: int | None = None,
        raw_rate_hz: int | None = None,
        raw_format: str = "s16le",
        raw_channels: int = 1,
    ):
        speed(pace)
        block_samples(block_ms, pace, RATES_HZ[0])
        if channel is not None and channel < 1:
            raise GraphError(f"channels are counted from 1, not {channel!r}")
        self.path = path
        self.block_ms, self.pace, self.channel = block_ms, pace, channel
        self.raw = None if raw_rate_hz is None else Raw(raw_rate_hz, raw_format, raw_channels)
        self.clock: Time = RealTime()
        self.label = _label(path)
        self.notes: list[str] = []
        self._reader: Reader | None = None
        self._stop = threading.Event()

    @property
    def duration_s(self) -> float | None:
        """Seconds of audio, where the header of an opened file tells."""
        return self._reader.duration_s if self._reader else None

    def open(self) -> Port:
        """Find, open and check the recording; its rate is known afterwards."""
        try:
            reader = self._open_reader()
        except OSError as error:
            raise SourceError(f"{self.label}: cannot read it ({reason(error)})") from error
        if self.channel is not None and self.channel > reader.channels:
            reader.close()
            raise SourceError(f"{self.label}: channel {self.channel} is not one of its {reader.channels}")
        self._reader = reader
        return pcm(reader.rate_hz)

    def blocks(self) -> Iterator[np.ndarray]:
        """Mono blocks [samples]; the last may be shorter."""
        reader = self._reader
        assert reader is not None, "open a source before reading its blocks"
        mix = Mixdown(self.channel)
        size = block_samples(self.block_ms, self.pace, reader.rate_hz)
        try:
            whole = sized(map(mix, reader.chunks()), size)
            yield from paced(whole, reader.rate_hz, self.pace, self.clock, self._stop)
        finally:
            self.notes += reader.notes + mix.note()
            reader.close()

    def close(self) -> None:
        """Stop reading; a thread inside `blocks` sees the end."""
        self._stop.set()
        if self._reader is not None:
            self._reader.close()

    def _open_reader(self) -> Reader:
        if not isinstance(self.path, str | Path):
            return _stream_reader(self.path, self.raw, self.label)
        if str(self.path) == "-":
            return _stream_reader(standard_input(), self.raw, self.label)
        mode = readable(Path(self.path), self.label)
        if self.raw is None and stat.S_ISREG(mode):
            return _path_reader(Path(self.path), self.label)
        if self.raw is None and not stat.S_ISFIFO(mode):
            raise SourceError(f"{self.label}: it is a device, not a file; if it gives raw PCM, say raw_rate")
        return _stream_reader(Path(self.path).open("rb"), self.raw, self.label, own=True)


class Wav:
    """Keeps the audio of the PCM branch it stands on as a mono WAV file, `subtype` as soundfile names it.

    Blocks are written as they come; `close` completes the header, and readers mend that of a killed run.

    Raises
    ------
    GraphError   at once, if WAV has no such subtype
    SinkError    if the file cannot be created or written, or has reached the 4 GiB that WAV can count
    """

    TAKES = "pcm"

    def __init__(self, *, path: str | Path, subtype: str = "PCM_16"):
        if not soundfile.check_format("WAV", subtype):
            known = ", ".join(soundfile.available_subtypes("WAV"))
            raise GraphError(f"wav subtype is one of {known}, not {subtype!r}")
        self.path, self.subtype = str(path), subtype
        self._file: soundfile.SoundFile | None = None

    def open(self, port: Port) -> None:
        if port.rate > RATES_HZ[1]:
            raise SinkError(f"{self.path}: {port.rate} Hz is no rate for a WAV file")
        try:
            Path(self.path).open("wb").close()  # soundfile reports every failure as 'System error'
            self._file = soundfile.SoundFile(self.path, "w", port.rate, 1, self.subtype, format="WAV")
        except (OSError, soundfile.SoundFileError) as error:
            advice = cure(error, self.path) if isinstance(error, OSError) else ""
            raise SinkError(f"{self.path}: cannot create it ({reason(error)}){advice}") from error

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        if self._file is None or packet.spans[0] is None:
            return
        samples = np.ascontiguousarray(packet.data[0], np.float32).reshape(-1)
        before = self._file.frames
        try:
            self._file.write(samples)
        except (soundfile.SoundFileError, AssertionError) as error:
            raise self._full(error) from error
        if self._file.frames - before != len(samples):
            raise self._full(None)

    def cut(self, at: int) -> None:
        """Nothing: the recording goes on."""

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _full(self, error: Exception | None) -> SinkError:
        assert self._file is not None
        said = f" ({reason(error)})" if error is not None and str(error) else ""
        return SinkError(f"{self.path}: cannot write it{said}; is the disk full, or the file past 4 GiB?")


class _Decoder:
    """A soundfile being read. `own` is closed with it; `damage` is known already, and told at the end."""

    def __init__(
        self, file: soundfile.SoundFile, label: str, *, own: BinaryIO | None = None, damage: str = ""
    ):
        self.rate_hz, self.channels = file.samplerate, file.channels
        self.notes: list[str] = []
        self._file, self._label, self._own, self._damage = file, label, own, damage
        self._seekable = file.seekable()
        # soundfile seeks to where it stands after every read: libsndfile's MP3 decoder loses its reservoir by
        # that, and its DWVW decoder cannot do it at all. test_reading_does_not_seek tells when this may go.
        file.seekable = lambda: False
        self._lock = threading.Lock()  # `close` may come from another thread while a block is decoded
        self._promised = file.frames if 0 <= file.frames < ENDLESS_FRAMES else None
        self.duration_s = None if self._promised is None else self._promised / self.rate_hz
        if not (RATES_HZ[0] <= self.rate_hz <= RATES_HZ[1] and 1 <= self.channels <= CHANNELS):
            self.close()
            raise SourceError(
                f"{label}: its header says {self.rate_hz} Hz and {self.channels} channels, beyond "
                f"{RATES_HZ[0]} to {RATES_HZ[1]} Hz and 1 to {CHANNELS} channels; is it damaged?"
            )

    def chunks(self) -> Iterator[np.ndarray]:
        frames = 0
        fault: str | None = None
        while fault is None:
            chunk, fault = self._chunk()
            if not len(chunk):
                break
            frames += len(chunk)
            yield chunk
        fault = fault or self._verdict(frames)
        self.close()
        if fault:
            seconds = frames / self.rate_hz
            raise SourceError(f"{self._label}: damaged or cut short after {seconds:.2f} s ({fault})")

    def close(self) -> None:
        with self._lock:
            self._file.close()
            if self._own is not None:
                self._own.close()

    def _verdict(self, frames: int) -> str:
        """What is wrong with a file that ended after `frames`; empty if nothing, or if it was closed."""
        with self._lock:
            if self._file.closed:
                return ""
            return self._damage or _missing(self._file, self._promised, frames)

    def _chunk(self) -> tuple[np.ndarray, str | None]:
        """The next frames, and why they are the last good ones if they are."""
        out = np.empty((DECODE_FRAMES, self.channels), np.float32)
        with self._lock:
            if self._file.closed:
                return out[:0], None
            start = self._file.tell() if self._seekable else 0
            try:
                return self._file.read(out=out), None
            except soundfile.SoundFileError as error:
                good = self._file.tell() - start if self._seekable else 0
                return out[: max(0, good)], reason(error)


def _path_reader(path: Path, label: str) -> Reader:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise SourceError(f"{label}: the file is empty")
    if path.suffix.lower() == ".raw":
        raise SourceError(f"{label}: raw PCM has no header; give raw_rate, raw_format and raw_channels")
    name = os.fsencode(path) if os.name == "posix" else str(path)  # bytes: a name need not be valid UTF-8
    damage = "" if head[:4] != b"OggS" or _ogg_ends(path) else "its last page is missing"
    try:
        return _Decoder(soundfile.SoundFile(name), label, damage=damage)
    except soundfile.SoundFileError as error:
        if head[:4] == b"OggS" and os.name == "posix":
            return _cut_ogg(path, label, error)
        raise SourceError(_unreadable(label, head, error)) from error


def _cut_ogg(path: Path, label: str, error: soundfile.SoundFileError) -> Reader:
    """What an Ogg file without its end still holds: libsndfile reads it where it cannot seek there."""
    out, into = os.pipe()
    own = os.fdopen(out, "rb")
    threading.Thread(target=_pour, args=(path, into), name="headrace-ogg", daemon=True).start()
    try:
        return _Decoder(soundfile.SoundFile(out, closefd=False), label, own=own, damage=reason(error))
    except soundfile.SoundFileError:
        own.close()
        raise SourceError(_unreadable(label, b"OggS", error)) from error


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file says that it is the last (RFC 3533, 6: flag 4 of byte 5)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_PAGE_BYTES))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def _pour(path: Path, into: int) -> None:
    with path.open("rb") as file, os.fdopen(into, "wb") as pipe:
        try:
            while data := file.read(1 << 16):
                pipe.write(data)
                pipe.flush()
        except BrokenPipeError:  # the reader has closed its end: nobody wants the rest
            pipe.detach()
            os.close(into)


def _stream_reader(stream: BinaryIO, raw: Raw | None, label: str, *, own: bool = False) -> Reader:
    if raw is not None:
        return RawReader(Feed(stream, own=own), raw, label)
    if stream.seekable():
        return _seekable_reader(stream, label)
    feed = Feed(stream, own=own)
    wav = wav_reader(feed, label)
    return wav if wav is not None else _spooled(feed, label)


def _seekable_reader(stream: BinaryIO, label: str, *, own: bool = False) -> Reader:
    head = stream.read(64)
    stream.seek(-len(head), os.SEEK_CUR)
    if not head:
        raise SourceError(f"{label}: no audio came: it is empty")
    try:
        return _Decoder(soundfile.SoundFile(stream), label, own=stream if own else None)
    except soundfile.SoundFileError as error:
        raise SourceError(_unreadable(label, head, error, named=False)) from error


def _spooled(feed: Feed, label: str) -> Reader:
    """Collect a stream on disk: its format can only be read from a file."""
    file = tempfile.TemporaryFile(prefix="headrace-")  # noqa: SIM115
    try:
        for data in feed.chunks():
            if file.write(data) and file.tell() > SPOOL_BYTES:
                size = f"{SPOOL_BYTES >> 30} GiB"
                raise SourceError(f"{label}: over {size}, and not WAV; if it is raw PCM, say raw_rate")
        file.seek(0)
        return _seekable_reader(file, label, own=True)
    except OSError as error:
        file.close()
        folder = tempfile.gettempdir()
        raise SourceError(f"{label}: cannot collect it in {folder!r} ({reason(error)})") from error
    except SourceError:
        file.close()
        raise
    finally:
        feed.close()


def _unreadable(label: str, head: bytes, error: Exception, *, named: bool = True) -> str:
    if not set(head) - set(range(32, 127)) - set(b"\t\r\n"):
        return f"{label}: it holds text, not audio (it begins {head[:24].decode('ascii')!r})"
    why = reason(error)
    if "does not exist" in why:  # what libsndfile says of an MP3 without a frame
        why = "format not recognised"
    if named:
        target = shlex.quote(f"{Path(label).stem or 'audio'}.16k.wav")
        cure = f"if it is audio, convert it: ffmpeg -i {shlex.quote(label)} -ac 1 -ar 16000 {target}"
    else:
        cure = "if it is raw PCM, say raw_rate; other audio can come through `ffmpeg -v error -i - -f wav -`"
    return f"{label}: soundfile cannot read it ({why}); {cure}"


def _missing(file: soundfile.SoundFile, promised: int | None, frames: int) -> str:
    """What a header promised and the file does not hold; empty if all is there.

    libsndfile adapts lengths to the file and says so only in its log: `data : 64000 (should be 31978)`.
    """
    for said, found in re.findall(r": (\d+) \(should be (\d+)\)", file.extra_info):
        if int(said) - int(found) > SLACK_BYTES and int(said) < UNKNOWN_LENGTH:
            return f"its header promises {int(said) - int(found)} more bytes"
    slack = MP3_SLACK_FRAMES if file.format == "MP3" else 0
    if promised is not None and frames < promised - slack:
        return f"its header promises {promised / file.samplerate:.2f} s"
    return ""


def _label(path: str | Path | BinaryIO) -> str:
    if isinstance(path, str | Path):
        return "standard input" if str(path) == "-" else str(path)
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else "a stream"
