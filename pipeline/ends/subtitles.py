"""SubRip and WebVTT subtitles, written cue by cue, so that an interrupted run leaves a valid file."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.ends.output import Output
from pipeline.ends.words import Word, WordAssembly
from pipeline.errors import GraphError
from stages.packet import Packet
from stages.stage import Port

FORMATS = ("srt", "vtt")
LINE_CHARACTERS = 42  # with the rest, the habits of broadcasters and streaming services
LINES = 2
CUE_MS = 6_000
SENTENCE_MS = 1_000  # a shorter sentence shares its cue with the next
PAUSE_MS = 700
SHORTEST_MS = 300
LINGER_MS = 500  # a cue stays this much longer than its words, if the next leaves it the time
WORD_MS = 300  # what we know is where words end; a word is taken to have begun this long before
SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")


@dataclass(slots=True)
class Cue:
    """Words to show from `start` to `stop`, both in milliseconds."""

    start: int
    stop: int
    words: list[str] = field(default_factory=list)
    complete: bool = False  # its sentence has ended; it is written when we know how long it may stay

    def lines(self, *more: str) -> list[str]:
        """The words, and then `more`, broken into lines."""
        return textwrap.wrap(" ".join([*self.words, *more]), LINE_CHARACTERS, break_on_hyphens=False)


class Subtitles:
    """Groups words into cues: two lines of 42 characters, at most 6 s, ending at pauses, sentences and cuts.

    Parameters
    ----------
    path : a file, or `-` for standard output
    format : `srt` or `vtt`; by default what the path's suffix says, else `srt`

    Raises
    ------
    GraphError   at once, for another format
    SinkError    if it cannot be written; SinkClosed if its reader has gone
    """

    TAKES = "text"

    def __init__(self, *, path: str | Path = "-", format: str | None = None):
        suffix = Path(path).suffix.lower().removeprefix(".")
        self.format = format or (suffix if suffix in FORMATS else FORMATS[0])
        if self.format not in FORMATS:
            raise GraphError(f"subtitle format is one of {', '.join(FORMATS)}, not {format!r}")
        self._out = Output(path)
        self._words = WordAssembly()
        self._cue: Cue | None = None
        self._count = 0
        self._written_ms = 0
        self._rate = 1

    def open(self, port: Port) -> None:
        self._rate = port.rate
        self._out.open()
        if self.format == "vtt":
            self._out.write("WEBVTT\n\n")

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        for word in self._words.push(packet.data):
            self._add(word)

    def cut(self, at: int) -> None:
        for word in self._words.flush():
            self._add(word)
        self._finish(LINGER_MS)

    def close(self) -> None:
        try:
            self.cut(0)
        finally:
            self._out.close()

    def _add(self, word: Word) -> None:
        begins, ends = self._ms(word.start) - WORD_MS, self._ms(word.stop)
        if self._cue is not None and (self._cue.complete or begins - self._cue.stop > PAUSE_MS):
            self._finish(begins - self._cue.stop)
        for text in textwrap.wrap(word.text, LINE_CHARACTERS * LINES, break_on_hyphens=False):
            cue = self._cue
            if cue is not None and (ends - cue.start > CUE_MS or len(cue.lines(text)) > LINES):
                self._finish(begins - cue.stop)
            if self._cue is None:
                self._cue = Cue(max(begins, self._written_ms), ends)
            self._cue.words.append(text)
            self._cue.stop = max(ends, self._cue.start + SHORTEST_MS)
        if self._cue is not None and word.text.endswith(SENTENCE_ENDS):
            self._cue.complete = self._cue.stop - self._cue.start >= SENTENCE_MS

    def _finish(self, room_ms: int) -> None:
        """Write the open cue, which may stay `room_ms` longer than its words."""
        cue, self._cue = self._cue, None
        if cue is None:
            return
        self._count += 1
        self._written_ms = cue.stop + max(0, min(LINGER_MS, room_ms))
        write = _srt if self.format == "srt" else _vtt
        self._out.write(write(self._count, cue.start, self._written_ms, cue.lines()))

    def _ms(self, sample: int) -> int:
        return max(0, round(1000 * sample / self._rate))


def _srt(number: int, start: int, stop: int, lines: list[str]) -> str:
    text = "\n".join(lines).replace("-->", "->")  # the one thing SubRip cannot say
    return f"{number}\n{_time(start, ',')} --> {_time(stop, ',')}\n{text}\n\n"


def _vtt(number: int, start: int, stop: int, lines: list[str]) -> str:
    text = "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{number}\n{_time(start, '.')} --> {_time(stop, '.')}\n{text}\n\n"


def _time(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{ms:03d}"
