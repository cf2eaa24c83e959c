"""A stage of one's own, a noise gate: `python -m pipeline run examples/own_stage.yaml --allow-import`."""

import numpy as np

from stages import Cut, Packet, Port, Span
from stages.stage import Emission, Row, per_lane, plug


class Gate:
    """Silence wherever nothing has reached `floor_db` for `hold_ms`.

    Takes    pcm
    Gives    pcm on the same clock
    Holds    which of the last `hold_ms` were loud
    Latency  none: it opens on the very sample
    """

    quantum, lookahead = 1, 0

    def __init__(self, upstream: Port, *, floor_db: float = -50.0, hold_ms: float = 300.0):
        self.takes = self.gives = plug("gate", upstream, "pcm")
        self.floor, self.hold = 10 ** (floor_db / 20), max(1, round(hold_ms * upstream.rate / 1000))

    def open(self, lanes: int = 1) -> list[np.ndarray]:
        return [np.zeros(self.hold, bool) for _ in range(lanes)]

    def step(self, state: list[np.ndarray], packet: Packet) -> list[Emission]:
        return per_lane(state, packet, self._lane)

    def flush(self, state: list[np.ndarray], lane: int = 0) -> list[Emission]:
        state[lane][:] = False
        return []

    def _lane(self, tail: np.ndarray, samples: np.ndarray, span: Span) -> list[Row | Cut]:
        loud = np.concatenate([tail, np.abs(samples) >= self.floor])  # [hold + samples]
        tail[:], count = loud[len(samples) :], np.cumsum(loud)
        return [(np.where(count[self.hold :] > count[: -self.hold], samples, np.float32(0)), span)]
