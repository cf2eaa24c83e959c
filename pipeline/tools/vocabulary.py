"""What a model can say, read from its tekken.json: a few hundred words, or anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.text.tekken import SINGLE_BYTES, load_tekken

OPEN_WORDS = 2000  # a vocabulary larger than this was made to spell any text

UNITS = (
    "zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
)
MONTHS = "january february march april may june july august september october november december"
GROUPS = {
    "letters": frozenset("abcdefghijklmnopqrstuvwxyz"),
    "numbers": frozenset(f"{UNITS} {TENS}".split()),
    "ordinals": frozenset(ORDINALS.split()),
    "months": frozenset(MONTHS.split()),
}
OTHERS = "other words"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The whole words of a tekken.json.

    open : made of pieces that spell any text, so the words say nothing about its limits
    groups : words by kind, the rest under "other words"; empty where `open`
    """

    open: bool
    size: int
    groups: dict[str, tuple[str, ...]]

    @property
    def summary(self) -> str:
        if self.open:
            return f"{self.size} pieces that spell any text"
        counts = ", ".join(f"{len(words)} {name}" for name, words in self.groups.items())
        return f"{self.size} words of English: {counts}"

    @property
    def limits(self) -> str:
        """What to expect of it, in plain words."""
        if self.open:
            return ""
        return (
            "a small-vocabulary model for trying things out: letters, numbers, dates, commands and coffee "
            "orders, in English; whatever else is said comes out as these words. Name larger weights with "
            "--weights or VOXTRAL\n"
            f"{OTHERS}: {', '.join(self.groups[OTHERS])}"
        )


def vocabulary(tekken: Path) -> Vocabulary:
    """The words that `tekken` holds; placeholders in angle brackets are none.

    Raises
    ------
    FormatError   it is absent or not a tekken.json
    """
    pieces = load_tekken(tekken).pieces
    texts = [piece.decode("utf-8", "replace") for piece in pieces if piece][SINGLE_BYTES:]
    if len(texts) > OPEN_WORDS:
        return Vocabulary(True, len(texts), {})
    words = [text.strip() for text in texts if text.strip() and not text.strip().startswith("<")]
    groups = {name: tuple(w for w in words if w in known) for name, known in GROUPS.items()}
    grouped = frozenset().union(*GROUPS.values())
    return Vocabulary(False, len(words), groups | {OTHERS: tuple(w for w in words if w not in grouped)})
