"""Token ids to whole characters and timed word pieces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from stages.errors import ConfigError
from stages.packet import Packet, Span, Text
from stages.stage import Clock, Emission, Port, Row, emit, per_lane, plug
from stages.text.utf8 import Characters
from stages.voxtral.config import STREAMING_PAD, STREAMING_WORD
from stages.voxtral.names import Checkpoint


@dataclass(slots=True)
class TextLane:
    """An unfinished character, the marker of the word under way, and the blank run."""

    clock: Clock = field(default_factory=Clock)
    characters: Characters = field(default_factory=Characters)
    marker: Span | None = None  # where the [STREAMING_WORD] of the word under way stood
    opens: bool = True  # the next text begins a word
    blank_run: int = 0


class Detokenizer:
    """Tokens to text.

    Takes    tokens, 12.5 Hz, on the host
    Gives    text on the same clock, the delay subtracted: a piece's span is the 80 ms in which its word was
             heard to end
    Holds    at most three bytes of an unfinished character, and three words
    Latency  the decoder's delay: the word a token speaks of ended that much before the token's own frame

    Ids below the first text token say something about the stream and show as nothing; the end of a text is
    one of them.

    Parameters
    ----------
    upstream : the port of `voxtral.decoder`, which knows its delay
    checkpoint : its folder holds tekken.json

    Raises
    ------
    FormatError   if tekken.json is absent or damaged
    ConfigError   if it is another model's
    """

    TAKES, GIVES = ("tokens", 1280), ("text", 1280)
    quantum = 1

    def __init__(self, upstream: Port, checkpoint: Checkpoint):
        self.takes = replace(plug("voxtral.text", upstream, "tokens"), where="host")
        self.gives = Port("text", upstream.rate, upstream.hop, 0)
        self.tekken = checkpoint.vocabulary()
        if self.tekken.vocab_size != checkpoint.config.decoder.vocab:
            raise ConfigError(
                f"{checkpoint.tekken}: has {self.tekken.vocab_size} tokens, but the model's table has "
                f"{checkpoint.config.decoder.vocab} rows; is it another model's?"
            )
        if len(self.tekken.specials) <= STREAMING_WORD:
            raise ConfigError(
                f"{checkpoint.tekken}: expected {STREAMING_WORD + 1} special tokens or more, found "
                f"{len(self.tekken.specials)}; is it another model's?"
            )
        self.delay = self.lookahead = upstream.delay

    def open(self, lanes: int = 1) -> list[TextLane]:
        return [TextLane() for _ in range(lanes)]

    def step(self, state: list[TextLane], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[TextLane], lane: int = 0) -> list[Emission]:
        """What an unfinished character looks like, then a fresh start."""
        ended, state[lane] = state[lane], TextLane()
        rest, stop = ended.characters.flush(), ended.clock.next
        if not rest or stop is None:
            return []
        span = Span(stop - self.delay, stop - self.delay)
        return emit(len(state), lane, [([Text(rest, ended.marker or span, False)], span)])

    def gauges(self, state: list[TextLane]) -> dict[str, float]:
        return {"blank_run": max(lane.blank_run for lane in state)}

    def _lane(self, lane: TextLane, tokens: np.ndarray, span: Span) -> list[Row]:
        lane.clock.advance("voxtral.text", span)
        hop, first = self.takes.hop, span.start - self.delay
        heard = [Span(first + n * hop, first + (n + 1) * hop) for n in range(len(tokens))]
        return [(self._piece(lane, token, at), at) for token, at in zip(tokens.tolist(), heard, strict=True)]

    def _piece(self, lane: TextLane, token: int, heard: Span) -> list[Text]:
        lane.blank_run = lane.blank_run + 1 if token == STREAMING_PAD else 0
        if token == STREAMING_WORD:
            lane.marker, lane.opens = heard, True
        elif token == STREAMING_PAD:
            lane.marker = None  # that word is over: what comes without a marker of its own has its own time
        data = self.tekken.bytes_of(token)
        text = lane.characters.push(data) if data else ""
        if not text:
            return []
        opens = lane.opens or text[0].isspace()
        lane.opens = False
        return [Text(text, lane.marker or heard, opens, token)]
