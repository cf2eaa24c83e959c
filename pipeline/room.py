"""What a model takes, known before it is taken: its weights, and what one speaker keeps."""

from __future__ import annotations

from dataclasses import dataclass

from kernels import Backend
from pipeline.tools import machine
from pipeline.tools.machine import size
from stages.voxtral.config import Config
from stages.voxtral.names import Checkpoint

SMALLER_CONTEXT = 750  # positions: a minute to look back at
SMALLER = f"use Q4_0 weights or --set decoder.context={SMALLER_CONTEXT}, or close other programs"
NOTABLE_BYTES = 500_000_000  # below that nobody asks


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes on one backend.

    weights : as they are stored
    lane : keys and values of one speaker; full : the same with all windows of the model
    context : positions the decoder keeps, 0 for the whole window
    free : what could still be taken; None where nobody says
    """

    weights: int
    lane: int
    full: int
    context: int
    free: int | None

    @property
    def need(self) -> int:
        return self.weights + self.lane

    @property
    def fits(self) -> bool:
        return self.free is None or self.need <= self.free

    def __str__(self) -> str:
        """In words, with what the other choice of a context would take."""
        said = f"{size(self.need)}: {size(self.weights)} of weights, {size(self.lane)} for one speaker"
        if self.context:
            said += f" of {self.context} positions ({size(self.full)} with full windows)"
        elif self.weights >= NOTABLE_BYTES:
            said += f" when the windows are full; --set decoder.context={SMALLER_CONTEXT} keeps less"
        free = "this system does not say what is free" if self.free is None else f"{size(self.free)} are free"
        return f"{said}; {free}"


def room_for(checkpoint: Checkpoint, backend: Backend, context: int = 0) -> Room:
    """What the model in `checkpoint` takes on `backend` with a decoder that keeps `context` positions."""
    stored = sum(entry.nbytes for entry in checkpoint.weights.entries.values())
    free = backend.free_bytes()
    lane, full = (ring_bytes(checkpoint.config, backend, kept) for kept in (context, 0))
    return Room(stored, lane, full, context, machine.memory_available() if free is None else free)


def ring_bytes(config: Config, backend: Backend, context: int = 0) -> int:
    """Keys and values of one lane with full windows, of at most `context` positions in the decoder."""
    encoder, decoder = config.encoder, config.decoder
    kept = min(context, decoder.window) if context else decoder.window
    towers = (encoder, encoder.window), (decoder, kept)
    return sum(t.layers * backend.ring_bytes(t.kv_heads, window, t.head_dim) for t, window in towers)
