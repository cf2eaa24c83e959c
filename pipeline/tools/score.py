"""Word and character errors of recognised text, counted by jiwer after one of Whisper's text normalisers.

    basic     lower case, no brackets, punctuation to spaces. The default
    english   spelt numbers to digits, fillers dropped, contractions undone, British to American spelling

`english` is what the papers on large models use, and right for a model that writes "$175". It is wrong for
speech made of letters and digits: "five five three five" becomes one word, 5535, "one five" and "fifteen"
both 15, "o" and "zero" both 0, "and a half" nothing. It hides errors, and makes a telephone number one word.
`basic` makes two words of "i'd".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import GraphError, PipelineError

NORMALIZERS = ("basic", "english")
CURE = "pip install 'headrace[evaluate]'"


@dataclass(frozen=True, slots=True)
class Count:
    """Units of the reference (words or characters) and what became of them."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def reference(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of reference; of an empty reference, 0 or 1: whether anything was made up."""
        return self.errors / self.reference if self.reference else float(self.errors > 0)


@dataclass(frozen=True, slots=True)
class Scored:
    """One recording: its texts after the normaliser, their differences, and how much of it was heard.

    alignment : both texts one above the other, errors marked
    """

    file: str
    reference: str
    hypothesis: str
    words: Count
    characters: Count
    seconds: float
    alignment: str

    @property
    def folder(self) -> str:
        """First part of the path, empty for a file beside the manifest."""
        parts = PurePosixPath(self.file).parts
        return parts[0] if len(parts) > 1 else ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a set of recordings comes to."""

    recordings: int
    seconds: float
    words: Count
    characters: Count
    right: int

    @classmethod
    def of(cls, scored: Iterable[Scored]) -> Score:
        one = list(scored)
        return cls(
            len(one),
            sum(s.seconds for s in one),
            sum((s.words for s in one), Count()),
            sum((s.characters for s in one), Count()),
            sum(not s.words.errors for s in one),
        )

    def as_json(self) -> dict[str, Any]:
        """Rates are fractions: 0.116 is 11.6 %; above 1 where more is made up than was said."""
        return {
            "wer": round(self.words.rate, 6),
            "cer": round(self.characters.rate, 6),
            "sentence_accuracy": round(self.right / self.recordings, 6) if self.recordings else None,
            "recordings": self.recordings,
            "seconds": round(self.seconds, 3),
            "words": self.words.reference,
            "substitutions": self.words.substitutions,
            "deletions": self.words.deletions,
            "insertions": self.words.insertions,
        }


class Scorer:
    """Compares what was said with what was recognised; `normalizer` is one of `NORMALIZERS`.

    Raises
    ------
    GraphError      there is no such normaliser
    PipelineError   jiwer or whisper-normalizer is missing; says how to get them
    """

    def __init__(self, normalizer: str = "basic"):
        if normalizer not in NORMALIZERS:
            raise GraphError(f"normalizer is one of {', '.join(NORMALIZERS)}, not {normalizer!r}")
        try:
            import jiwer
            from whisper_normalizer.basic import BasicTextNormalizer
            from whisper_normalizer.english import EnglishTextNormalizer
        except ModuleNotFoundError as error:
            raise PipelineError(f"evaluate: the package {error.name} is missing; {CURE}") from error
        self.normalizer = normalizer
        self._normalise = BasicTextNormalizer() if normalizer == "basic" else EnglishTextNormalizer()
        self._jiwer = jiwer

    def __call__(self, file: str, reference: str, hypothesis: str, seconds: float) -> Scored:
        said, heard = (" ".join(self._normalise(text).split()) for text in (reference, hypothesis))
        words = self._jiwer.process_words([said], [heard])
        characters = self._jiwer.process_characters([said], [heard])
        shown = self._jiwer.visualize_alignment(words, show_measures=False).split("\n", 2)[-1].rstrip()
        return Scored(file, said, heard, _count(words), _count(characters), seconds, shown)


def _count(output: Any) -> Count:
    return Count(output.hits, output.substitutions, output.deletions, output.insertions)
