"""Plain text as it is recognised, one line per utterance."""

from __future__ import annotations

from pathlib import Path

from pipeline.ends.output import Output
from stages.packet import Packet
from stages.stage import Port


class Lines:
    """Writes every piece the moment it is known; a cut, and the end, close the line.

    Parameters
    ----------
    path : a file, or `-` for standard output

    Raises
    ------
    SinkError    if it cannot be written
    SinkClosed   if its reader has gone
    """

    TAKES = "text"

    def __init__(self, *, path: str | Path = "-"):
        self._out = Output(path)
        self._fresh = True

    def open(self, port: Port) -> None:
        self._out.open()

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        text = "".join(piece.text for piece in packet.data)
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            self._out.write(text)

    def cut(self, at: int) -> None:
        if not self._fresh:
            self._fresh = True
            self._out.write("\n")

    def close(self) -> None:
        try:
            self.cut(0)
        finally:
            self._out.close()
