"""Pieces of text gathered into words, for sinks that time words and not pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.packet import Text


@dataclass(slots=True)
class Word:
    """A word with its punctuation, its pieces' samples [start, stop) and when its last piece came out."""

    text: str
    start: int
    stop: int
    tokens: list[int] = field(default_factory=list)
    emitted_s: float | None = None


class WordAssembly:
    """Joins pieces that open no word to the word before them. A word is complete when the next one opens."""

    def __init__(self) -> None:
        self._word: Word | None = None

    def push(self, pieces: list[Text], emitted_s: float | None = None) -> list[Word]:
        """The words these pieces complete."""
        done: list[Word] = []
        for piece in pieces:
            if piece.word or self._word is None:
                done += self.flush()
                self._word = Word("", piece.span.start, piece.span.stop)
            word = self._word
            assert word is not None
            word.text += piece.text
            word.stop = max(word.stop, piece.span.stop)
            word.emitted_s = emitted_s
            if piece.token is not None:
                word.tokens.append(piece.token)
        return done

    def flush(self) -> list[Word]:
        """The word still open, if it says anything."""
        word, self._word = self._word, None
        if word is None or not word.text.strip():
            return []
        word.text = word.text.strip()
        return [word]
