"""What travels: packets of items with the samples they speak for, and cuts.

A span counts samples of the graph clock, so it stays true through resampling-free chains whatever the item
is: one PCM sample, one mel frame of 160 samples or one token of 1280. Padding before the first sample has
negative spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Samples [start, stop) of the graph clock."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert self.stop >= self.start, f"span runs backwards: {self.start} to {self.stop}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text and when it was said.

    `span` covers the 80 ms in which the piece's word was heard to end, the delay already subtracted: a word
    end, true to about a tenth of a second. `word` says whether the piece opens a new word; `token` is the id
    it came from.
    """

    text: str
    span: Span
    word: bool = True
    token: int | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Packet:
    """Items of one or several lanes.

    data : [lane, item, ...] ndarray, or a device tensor, which is borrowed until the next step of the stage
        that gave it; for text a list of `Text`, one lane only
    spans : one per lane; None where that lane sits the step out (its data is to be ignored)
    """

    data: Any
    spans: tuple[Span | None, ...]

    @property
    def items(self) -> int:
        """Items per active lane."""
        return len(self.data) if isinstance(self.data, list) else self.data.shape[1]

    def part(self, start: int, stop: int, hop: int) -> Packet:
        """Items [start, stop) of every lane, a view; `hop` is the port's."""
        first, last = start * hop, stop * hop
        spans = (None if s is None else Span(s.start + first, s.start + last) for s in self.spans)
        return Packet(self.data[:, start:stop], tuple(spans))


@dataclass(frozen=True, slots=True)
class Cut:
    """All before sample `at` is final: emit it, then start afresh. Travels in order with the packets."""

    at: int
    lane: int = 0
