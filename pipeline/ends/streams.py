"""Audio that arrives as bytes: raw PCM and WAV from a pipe, decoded as they come and never held whole."""

from __future__ import annotations

import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from pipeline.ends.paths import reason
from pipeline.errors import GraphError, SourceError

CHUNK_BYTES = 1 << 16
CHUNKS_HELD = 4  # bytes read ahead of the decoder; a pipe makes its writer wait beyond them
HEADER_BYTES = 1 << 20  # a WAV stream that describes itself at greater length is not one
UNKNOWN_LENGTH = 0x7FFF0000  # ffmpeg, sox and arecord write sizes from here up when they do not know
RATES_HZ = (1_000, 1_000_000)  # beyond these a header lies; 8 to 192 kHz is what recordings have
CHANNELS = 64

# name -> (NumPy type, value of full scale, value of silence)
FORMATS: dict[str, tuple[str, float, float]] = {
    "u8": ("u1", 2.0**7, 2.0**7),
    "s8": ("i1", 2.0**7, 0.0),
    "s16le": ("<i2", 2.0**15, 0.0),
    "s16be": (">i2", 2.0**15, 0.0),
    "s24le": ("s24le", 2.0**23, 0.0),
    "s24be": ("s24be", 2.0**23, 0.0),
    "s32le": ("<i4", 2.0**31, 0.0),
    "s32be": (">i4", 2.0**31, 0.0),
    "f32le": ("<f4", 1.0, 0.0),
    "f32be": (">f4", 1.0, 0.0),
    "f64le": ("<f8", 1.0, 0.0),
    "f64be": (">f8", 1.0, 0.0),
}
WAV_PCM, WAV_FLOAT, WAV_EXTENSIBLE = 1, 3, 0xFFFE
WAV_FORMATS = {  # (codec, bits) -> key of FORMATS
    (WAV_PCM, 8): "u8",
    (WAV_PCM, 16): "s16le",
    (WAV_PCM, 24): "s24le",
    (WAV_PCM, 32): "s32le",
    (WAV_FLOAT, 32): "f32le",
    (WAV_FLOAT, 64): "f64le",
}


@dataclass(frozen=True, slots=True)
class Raw:
    """What headerless PCM means: `format` is a key of `FORMATS`.

    Raises
    ------
    GraphError   naming the option that makes no sense
    """

    rate_hz: int
    format: str = "s16le"
    channels: int = 1

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise GraphError(f"raw format is one of {', '.join(FORMATS)}, not {self.format!r}")
        if not RATES_HZ[0] <= self.rate_hz <= RATES_HZ[1]:
            raise GraphError(f"raw rate is {RATES_HZ[0]} to {RATES_HZ[1]} Hz, not {self.rate_hz!r}")
        if not 1 <= self.channels <= CHANNELS:
            raise GraphError(f"raw channels are 1 to {CHANNELS}, not {self.channels!r}")

    @property
    def frame_bytes(self) -> int:
        return self.channels * (int(self.format[1:3]) // 8 if self.format[1:3].isdigit() else 1)

    def decode(self, data: bytes) -> np.ndarray:
        """Whole frames of bytes to [frames, channels] float32 in [-1, 1]."""
        kind, full, silence = FORMATS[self.format]
        if kind.startswith("s24"):
            values = _int24(data, big=kind.endswith("be"))
        else:
            values = np.frombuffer(data, kind)
        if full == 1.0:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and then silence
                return values.astype(np.float32).reshape(-1, self.channels)
        return ((values.astype(np.float64) - silence) / full).astype(np.float32).reshape(-1, self.channels)


class Feed:
    """Bytes of a stream, read ahead by a thread of their own, so that `close` frees whoever waits for them.

    The thread is a daemon: it may sleep in a read that nobody can interrupt, and must not hold up the exit.
    """

    def __init__(self, stream: BinaryIO, *, own: bool = False):
        self._queue: queue.Queue[bytes | OSError] = queue.Queue(CHUNKS_HELD)
        self._closed = threading.Event()
        self._front = b""
        self._taken = b""
        self._over = False
        read, release = _reader(stream, own=own)
        threading.Thread(target=self._fill, args=(read, release), name="headrace-feed", daemon=True).start()

    def take(self, count: int) -> bytes:
        """The next `count` bytes, or fewer at the end; `rewind` brings them back."""
        while len(self._front) < count and (more := self._next()):
            self._front += more
        head, self._front = self._front[:count], self._front[count:]
        self._taken += head
        return head

    def rewind(self) -> None:
        """Bring back all that was taken."""
        self._front, self._taken = self._taken + self._front, b""

    def chunks(self) -> Iterator[bytes]:
        """All further bytes, as they come."""
        front, self._front, self._taken = self._front, b"", b""
        if front:
            yield front
        while more := self._next():
            yield more

    def close(self) -> None:
        """Free a waiting reader: it sees the end."""
        self._closed.set()
        while not self._queue.empty():  # room for the filler to notice
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        try:
            self._queue.put_nowait(b"")
        except queue.Full:
            return  # the filler put something meanwhile, and a waiting reader has woken from that

    def _next(self) -> bytes:
        if self._over or self._closed.is_set():
            return b""
        item = self._queue.get()
        if self._closed.is_set():
            return b""
        if isinstance(item, OSError):
            self._over = True
            raise SourceError(f"a stream of audio: cannot read it ({reason(item)})") from item
        self._over = not item
        return item

    def _fill(self, read: Callable[[int], bytes], release: Callable[[], None]) -> None:
        data = b"-"
        while data and not self._closed.is_set():
            try:
                data = read(CHUNK_BYTES)
            except OSError as error:
                self._queue.put(error)
                break
            except ValueError:  # the stream was closed by its owner while we read
                data = b""
            self._queue.put(data)
        release()


class RawReader:
    """Frames of a byte stream in a known layout; `length` bytes of them, or all there are.

    Raises, from `chunks`
    ---------------------
    SourceError   after the last whole frame, if the stream ends before `length`
    """

    def __init__(self, feed: Feed, raw: Raw, label: str, *, length: int | None = None):
        self.rate_hz, self.channels = raw.rate_hz, raw.channels
        self.duration_s = None if length is None else length / raw.frame_bytes / raw.rate_hz
        self.notes: list[str] = []
        self._feed, self._raw, self._label, self._length = feed, raw, label, length
        self._closed = False

    def chunks(self) -> Iterator[np.ndarray]:
        """[frames, channels] as they come."""
        held, seen = b"", 0
        for data in self._feed.chunks():
            if self._length is not None:
                data = data[: self._length - seen]
            seen += len(data)
            held += data
            whole = len(held) // self._raw.frame_bytes * self._raw.frame_bytes
            if whole:
                yield self._raw.decode(held[:whole])
            held = held[whole:]
            if seen == self._length:
                return
        if self._closed:
            return
        if self._length is not None:
            raise SourceError(f"{self._label}: ends after {seen} of {self._length} bytes; was it cut?")
        if held:
            self.notes.append(f"{len(held)} bytes at the end are no whole sample; is the raw format right?")

    def close(self) -> None:
        self._closed = True
        self._feed.close()


def wav_reader(feed: Feed, label: str) -> RawReader | None:
    """A reader for a WAV stream of PCM or float samples; None, with `feed` rewound, for anything else.

    Raises
    ------
    SourceError   if the header is cut short or makes no sense
    """
    head = feed.take(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        feed.rewind()
        return None
    raw: Raw | None = None
    room = HEADER_BYTES
    while room > 0:
        name, size = _chunk_head(feed, label)
        if name == b"data" and raw is not None:
            return RawReader(feed, raw, label, length=_known(size, raw))
        body = feed.take(min(size + size % 2, room))
        room -= 8 + len(body)
        if name == b"fmt ":
            raw = _wav_layout(body, label)
            if raw is None:
                feed.rewind()
                return None
    raise SourceError(f"{label}: no audio in the first {HEADER_BYTES} bytes of a WAV stream; is it damaged?")


def standard_input() -> BinaryIO:
    """The program's own standard input, as bytes.

    Raises
    ------
    SourceError   if there is none, or if it is a terminal that somebody would have to type samples into
    """
    if sys.stdin is None:
        raise SourceError("standard input: there is none; name a file instead of '-'")
    if sys.stdin.isatty():
        raise SourceError("standard input: it is a terminal; pipe audio in, as in `arecord -f S16_LE |`")
    return sys.stdin.buffer


def _chunk_head(feed: Feed, label: str) -> tuple[bytes, int]:
    head = feed.take(8)
    if len(head) < 8:
        raise SourceError(f"{label}: a WAV stream ended inside its header; was its writer stopped?")
    return head[:4], struct.unpack("<I", head[4:])[0]


def _wav_layout(body: bytes, label: str) -> Raw | None:
    if len(body) < 16:
        raise SourceError(f"{label}: a WAV stream has {len(body)} bytes of format, not 16; is it damaged?")
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if tag == WAV_EXTENSIBLE and len(body) >= 26:
        tag = struct.unpack("<H", body[24:26])[0]
    kind = WAV_FORMATS.get((tag, bits))
    if kind is None:
        return None
    try:
        return Raw(rate, kind, channels)
    except GraphError as error:
        raise SourceError(f"{label}: {error}; is its header damaged?") from error


def _known(size: int, raw: Raw) -> int | None:
    return None if size == 0 or size >= UNKNOWN_LENGTH else size // raw.frame_bytes * raw.frame_bytes


def _int24(data: bytes, *, big: bool) -> np.ndarray:
    octets = np.frombuffer(data, np.uint8).reshape(-1, 3)
    low, middle, high = octets.T[::-1] if big else octets.T
    wide = low.astype(np.int32) << 8 | middle.astype(np.int32) << 16 | high.astype(np.int32) << 24
    return wide >> 8


def _reader(stream: BinaryIO, *, own: bool) -> tuple[Callable[[int], bytes], Callable[[], None]]:
    """How to read what is there without waiting for more, and what to call afterwards.

    A descriptor is read past Python's buffer: a daemon thread that sleeps holding the buffer's lock makes the
    interpreter abort at exit. It is read through a copy: were it closed between two of our reads, the next
    would take bytes from whatever was opened under the same number since.
    """
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, AttributeError):
        return getattr(stream, "read1", stream.read), (stream.close if own else lambda: None)
    if own:
        stream.close()
    return (lambda count: os.read(descriptor, count)), (lambda: os.close(descriptor))
