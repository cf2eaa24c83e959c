"""One JSON object per line: what was said, when, and when we knew."""

from __future__ import annotations

from pathlib import Path

from pipeline.ends.output import Output
from pipeline.ends.words import Word, WordAssembly
from pipeline.errors import GraphError
from stages.packet import Packet, Text
from stages.stage import Port

UNITS = ("word", "piece")


class Jsonl:
    """Writes `{"text", "start", "stop", "token", "emitted"}` per word, or per piece as soon as it is known.

    Parameters
    ----------
    path : a file, or `-` for standard output
    each : `word` joins pieces into words, and so writes one when the next begins; `piece` does not wait

    Times are seconds to the millisecond: `start` and `stop` bound the 80 ms in which the word was heard to
    end; `emitted` is how much audio had gone in when it came out, null where the engine did not say.
    `token` lists the ids behind the text.

    Raises
    ------
    GraphError   at once, if `each` is something else
    SinkError    if it cannot be written; SinkClosed if its reader has gone
    """

    TAKES = "text"

    def __init__(self, *, path: str | Path = "-", each: str = "word"):
        if each not in UNITS:
            raise GraphError(f"each is one of {', '.join(UNITS)}, not {each!r}")
        self.each = each
        self.more: dict[str, str] = {}
        self._out = Output(path)
        self._words = WordAssembly()
        self._rate = 1

    def open(self, port: Port) -> None:
        self._rate = port.rate
        self._out.open()

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        if self.each == "word":
            self._put(self._words.push(packet.data, emitted_s))
        else:
            self._put([_alone(piece, emitted_s) for piece in packet.data if piece.text])

    def cut(self, at: int) -> None:
        self._put(self._words.flush())

    def close(self) -> None:
        try:
            self.cut(0)
        finally:
            self._out.close()

    def _put(self, words: list[Word]) -> None:
        for word in words:
            line = {
                **self.more,
                "text": word.text,
                "start": round(word.start / self._rate, 3),
                "stop": round(word.stop / self._rate, 3),
                "token": word.tokens,
                "emitted": None if word.emitted_s is None else round(word.emitted_s, 3),
            }
            self._out.write_json(line)


def _alone(piece: Text, emitted_s: float | None) -> Word:
    tokens = [] if piece.token is None else [piece.token]
    return Word(piece.text, piece.span.start, piece.span.stop, tokens, emitted_s)
