"""Where text goes: standard output or a file, flushed piece by piece, with every failure given its name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO

from pipeline.ends.paths import cure, reason
from pipeline.errors import SinkClosed, SinkError


class Output:
    """UTF-8 text to `path`, `-` being standard output.

    Raises
    ------
    SinkError    if the file cannot be created or written: the message names it and the cure
    SinkClosed   if the reader of a pipe has gone, which ends a run without complaint
    """

    def __init__(self, path: str | Path = "-"):
        self.path = str(path)
        self.label = "standard output" if self.path == "-" else self.path
        self._stream: IO[str] | None = None

    def open(self) -> None:
        if self.path == "-":
            if sys.stdout is None:
                raise SinkError("standard output: there is none; name a file instead of '-'")
            self._stream = sys.stdout
            return
        try:
            self._stream = Path(self.path).open("w", encoding="utf-8", newline="\n")  # noqa: SIM115
        except OSError as error:
            raise self._fault(error, "create") from error

    def write(self, text: str) -> None:
        """Write and flush, so that a reader sees it now."""
        if self._stream is None:
            return
        try:
            self._stream.write(_encodable(text, self._stream))
            self._stream.flush()
        except OSError as error:
            self._abandon()
            raise self._fault(error, "write") from error

    def write_json(self, value: object, indent: int | None = None) -> None:
        """`value` as JSON and an end of line; escaped where the encoding is not one of Unicode's."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        plain = not encoding.lower().startswith("utf")
        self.write(json.dumps(value, ensure_ascii=plain, indent=indent) + "\n")

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None or self.path == "-":
            return
        try:
            stream.close()
        except OSError as error:
            raise self._fault(error, "write") from error

    def _fault(self, error: OSError, verb: str) -> SinkError:
        if isinstance(error, BrokenPipeError):
            return SinkClosed(f"{self.label}: the reader has gone")
        return SinkError(f"{self.label}: cannot {verb} it ({reason(error)}){cure(error, self.path)}")

    def _abandon(self) -> None:
        """Forget a stream that failed, with the text it still holds: flushing that again would fail again."""
        stream, self._stream = self._stream, None
        assert stream is not None
        if self.path == "-":
            _point_at_nothing(stream)
            return
        try:
            stream.close()
        except OSError:
            return  # the same failure once more; the descriptor is closed all the same


def _encodable(text: str, stream: IO[str]) -> str:
    """`text` with what the terminal's encoding cannot say replaced by question marks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _point_at_nothing(stream: IO[str]) -> None:
    """Let what a dead standard output still holds drain into nothing: the interpreter flushes it at exit."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream made of memory, in somebody's program
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
