"""Bytes to whole characters, as they come."""

from __future__ import annotations

import codecs


class Characters:
    """Incremental UTF-8 decoder.

    An incomplete sequence at the end (at most 3 bytes) is held back until its rest arrives; bytes that can no
    longer become a character are replaced by U+FFFD. However the input is cut, the output equals that of
    `bytes.decode("utf-8", "replace")` on the whole.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is held back, as one U+FFFD, or nothing; then starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
