"""`transcribe`: the text of recordings, in the order they were named, as text, subtitles or JSON."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.ends.jsonl import Jsonl
from pipeline.ends.lines import Lines
from pipeline.ends.output import Output
from pipeline.ends.paths import is_same
from pipeline.ends.subtitles import Subtitles
from pipeline.ends.words import Word, WordAssembly
from pipeline.errors import GraphError, SinkError
from pipeline.progress import progress, text_is_watched, watched
from pipeline.run import Run
from pipeline.tools.recordings import Recording, length_s, recording
from stages import Packet, Port, Span

FORMATS = ("txt", "srt", "vtt", "json", "jsonl")
Failures = list[tuple[str, Exception]]


def transcribe_files(running: Run, files: Sequence[str], format: str = "txt", output: str = "-") -> Failures:
    """Send every one of `files` through the graph's chain; returns what failed, as (name, error).

    A recording that fails stops no other, and what was recognised before it failed is delivered.

    Parameters
    ----------
    files : paths, `-` for standard input
    format : txt (a line per utterance, written as it is recognised), srt, vtt, jsonl (an object per word,
        with the recording's name where there are several), json (an object, or a list with one per recording)
    output : `-`, a file that all share, or a folder (one that exists, or a name ending in /), which gets a
        file per recording. Subtitles that share a file run on, as if the recordings were played in a row

    Raises
    ------
    GraphError   for another format or no output, or where a recording would be overwritten, by its own text
        or that of another
    SinkError    if the folder cannot be made
    """
    if format not in FORMATS:
        raise GraphError(f"format is one of {', '.join(FORMATS)}, not {format!r}")
    if not output:
        raise GraphError("output is a file, a folder or -, not nothing")
    recordings = [recording(running.graph, file) for file in files]
    if output != "-" and (output.endswith("/") or Path(output).is_dir()):
        targets = own_files(files, Path(output), format)
        _spare(files, targets)
        pages = [Page(format, str(target), [r]) for target, r in zip(targets, recordings, strict=True)]
    else:
        _spare(files, [Path(output)])
        pages = [Page(format, output, recordings, running.stop)]
    answers = [(running.text_node, answer) for page in pages for answer in page.answers]
    jobs = [(r, [answer]) for r, answer in zip(recordings, answers, strict=True)]
    quiet = output == "-" and text_is_watched()
    total = total_s(running, files) if watched() and not quiet else None
    with progress("transcribing", unit="s", quiet=quiet) as report:
        failed = running.batch(jobs, lambda: report(sum(r.heard_s for r in recordings), total))
    return [*failed, *(failure for page in pages for failure in page.finish())]


def own_files(files: Sequence[str], folder: Path, format: str) -> list[Path]:
    """Where each recording's answer goes in `folder`, which is made if it is missing."""
    targets = [folder / f"{'stdin' if file == '-' else Path(file).stem}.{format}" for file in files]
    if clash := next((target for n, target in enumerate(targets) if target in targets[:n]), None):
        names = " and ".join(repr(f) for f, target in zip(files, targets, strict=True) if target == clash)
        raise GraphError(f"{names} would both be written to {str(clash)!r}; give each a folder of its own")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise SinkError(f"{folder}: cannot make this folder ({error.strerror})") from error
    return targets


def _spare(files: Sequence[str], targets: Sequence[Path]) -> None:
    """GraphError if text would be written over a recording."""
    for target in targets:
        if same := next((file for file in files if is_same(file, target)), None):
            raise GraphError(f"{target}: is also a recording to be read, {same!r}; write to another name")


def total_s(running: Run, files: Sequence[str]) -> float | None:
    """Seconds of audio in all `files`, None if one does not say."""
    lengths = [length_s(running.graph, file) for file in files]
    return None if None in lengths else sum(length for length in lengths if length is not None)


class Answer:
    """The sink of one recording: keeps what it hears until the page has room for it."""

    TAKES = "text"

    def __init__(self, page: Page, recording: Recording):
        self.recording = recording
        self.heard: deque[tuple[Packet, float | None] | int] = deque()  # packets and when they came; cuts
        self.closed = False
        self._page = page

    @property
    def over(self) -> bool:
        return self.closed or self.recording.refused

    def open(self, port: Port) -> None:
        self._page.open(port)

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        self.heard.append((packet, emitted_s))
        self._page.turn()

    def cut(self, at: int) -> None:
        self.heard.append(at)
        self._page.turn()

    def close(self) -> None:
        self.closed = True
        self._page.turn()


class Page:
    """One output that several recordings write on, in the order in which they were named.

    With several lanes answers come mixed; whoever is not yet due waits until all before it are through. A
    fault of the output is no recording's: it is kept for `finish`, and `stop` is called, for all further work
    would be in vain.
    """

    def __init__(
        self, format: str, path: str, recordings: Sequence[Recording], stop: Callable[[], None] = lambda: None
    ):  # fmt: skip
        self.answers = [Answer(self, recording) for recording in recordings]
        self._path, self._stop = path, stop
        self._sink = _sink(format, path, several=len(recordings) > 1)
        self._port: Port | None = None
        self._due = self._shift = 0  # answers written; samples of audio they had, where they run on
        self._fault: SinkError | None = None
        self._begin()

    def open(self, port: Port) -> None:
        if self._port is None:
            self._port = port
            self._try(self._sink.open, port)

    def turn(self) -> None:
        """Write what may be written now."""
        while self._due < len(self.answers):
            answer = self.answers[self._due]
            while answer.heard:
                self._put(answer.heard.popleft())
            if not answer.over:
                return
            self._end(answer.recording)
            self._due += 1
            self._begin()

    def finish(self) -> Failures:
        """Close the output; what went wrong with it, if anything did."""
        for answer in self.answers:
            answer.closed = True
        self.turn()
        if self._port is not None:
            self._try(self._sink.close)
        return [(self._path, self._fault)] if self._fault else []

    def _begin(self) -> None:
        if self._due == len(self.answers):
            return
        recording = self.answers[self._due].recording
        if isinstance(self._sink, Json):
            self._sink.begin(recording)
        elif isinstance(self._sink, Jsonl) and len(self.answers) > 1:
            self._sink.more = {"file": recording.label}

    def _put(self, heard: tuple[Packet, float | None] | int) -> None:
        if isinstance(heard, int):
            self._try(self._sink.cut, heard + self._shift)
        else:
            packet, emitted_s = heard
            self._try(self._sink.write, shifted(packet, self._shift), emitted_s=emitted_s)

    def _end(self, recording: Recording) -> None:
        if self._port is not None and recording.opened:
            length = round(recording.heard_s * self._port.rate)
            self._try(self._sink.cut, length + self._shift)
            self._shift += length if isinstance(self._sink, Subtitles) else 0

    def _try(self, act: Callable[..., None], *args: Any, **options: Any) -> None:
        if self._fault is not None:
            return
        try:
            act(*args, **options)
        except SinkError as fault:
            self._fault = fault
            self._stop()


class Json:
    """One JSON document, written at the end: an object per recording, in a list where there are `several`.

    `{"file", "text", "duration_s", "words": [{"text", "start", "stop"}]}`, times in seconds; `start` and
    `stop` bound the 80 ms in which the word was heard to end.
    """

    TAKES = "text"

    def __init__(self, path: str, *, several: bool):
        self._out = Output(path)
        self._several = several
        self._heard: list[tuple[Recording, list[Word]]] = []
        self._assembly = WordAssembly()
        self._rate = 1

    def open(self, port: Port) -> None:
        self._rate = port.rate
        self._out.open()

    def begin(self, recording: Recording) -> None:
        """What follows is from `recording`."""
        self._heard.append((recording, []))

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        self._heard[-1][1].extend(self._assembly.push(packet.data))

    def cut(self, at: int) -> None:
        self._heard[-1][1].extend(self._assembly.flush())

    def close(self) -> None:
        found = [self._object(recording, words) for recording, words in self._heard if recording.opened]
        document: Any = found if self._several else found[0]
        try:
            self._out.write_json(document, indent=1)
        finally:
            self._out.close()

    def _object(self, recording: Recording, words: Sequence[Word]) -> dict[str, Any]:
        return {
            "file": recording.label,
            "text": " ".join(word.text for word in words),
            "duration_s": round(recording.heard_s, 3),
            "words": [{"text": w.text, "start": self._s(w.start), "stop": self._s(w.stop)} for w in words],
        }

    def _s(self, sample: int) -> float:
        return round(sample / self._rate, 3)


def shifted(packet: Packet, by: int) -> Packet:
    """The same text, `by` samples later."""
    if not by:
        return packet
    pieces = [replace(p, span=Span(p.span.start + by, p.span.stop + by)) for p in packet.data]
    return Packet(pieces, packet.spans)


def _sink(format: str, path: str, *, several: bool) -> Any:
    if format == "json":
        return Json(path, several=several)
    if format == "jsonl":
        return Jsonl(path=path)
    return Lines(path=path) if format == "txt" else Subtitles(path=path, format=format)
