"""Each law refuses a stage that breaks it: seven small stages, each wrong in one way."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stages import Packet, Span, pcm
from tests import laws
from tests.strategies import speech

SECRET = random.Random(0)


@dataclass
class Sum:
    """One lane's running total, and how far it has come."""

    total: float = 0.0
    at: int = 0


class Right:
    """The honest parent: each sample plus the sum of all before it."""

    takes = gives = pcm(16_000)
    quantum, lookahead = 1, 0

    def open(self, lanes: int = 1):
        return [Sum() for _ in range(lanes)]

    def step(self, state, packet):
        out = np.zeros_like(packet.data, np.float64)
        for lane, span in enumerate(packet.spans):
            if span is not None:
                out[lane] = np.cumsum(np.append(state[lane].total, packet.data[lane].astype(np.float64)))[1:]
                state[lane].total, state[lane].at = float(out[lane][-1]), span.stop
        return [Packet(out, packet.spans)]

    def flush(self, state, lane: int = 0):
        state[lane] = Sum()
        return []


class DependsOnBlocks(Right):
    def step(self, state, packet):
        return [Packet(packet.data - packet.data.mean(axis=1, keepdims=True), packet.spans)]


class SkipsSilence(Right):
    def step(self, state, packet):
        return super().step(state, packet) if packet.data.any() else []


class LooksAhead(Right):
    """Waits for everything, and says it waits for nothing."""

    def open(self, lanes: int = 1):
        return [[] for _ in range(lanes)]

    def step(self, state, packet):
        for held, items, span in zip(state, packet.data, packet.spans, strict=True):
            held += items.tolist() if span else []
        return []

    def flush(self, state, lane: int = 0):
        whole, state[lane] = np.array(state[lane]), []
        spans = tuple(Span(0, len(whole)) if k == lane else None for k in range(len(state)))
        return [Packet(np.tile(whole - whole.mean(), (len(state), 1)), spans)] if len(whole) else []


class ForgetsToForget(Right):
    def flush(self, state, lane: int = 0):
        return []


class MindsIdleLanes(Right):
    def step(self, state, packet):
        for lane in state:
            lane.at += packet.items
        return super().step(state, packet)


class KeepsNotes(Right):
    def step(self, state, packet):
        self.last = packet.spans
        return super().step(state, packet)


class AsksChance(Right):
    def step(self, state, packet):
        return [Packet(packet.data + SECRET.random(), packet.spans)]


class CannotBeCopied(Right):
    def open(self, lanes: int = 1):
        return [Shy() for _ in range(lanes)]

    def flush(self, state, lane: int = 0):
        state[lane] = Shy()
        return []


class Shy(Sum):
    def __deepcopy__(self, memo):
        return Shy()


WRONG = [
    (laws.chunking, DependsOnBlocks), (laws.clock, SkipsSilence), (laws.causality, LooksAhead),
    (laws.flush, ForgetsToForget), (laws.lanes_apart, MindsIdleLanes), (laws.stillness, KeepsNotes),
    (laws.stillness, AsksChance), (laws.resume, CannotBeCopied),
]  # fmt: skip
FOUND_NOT_SHRUNK = settings(
    max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def trial(law, stage):
    case = laws.Case(stage.__name__, stage, speech(0.2))

    @FOUND_NOT_SHRUNK
    @given(st.data())
    def held(data):
        law(case, data.draw)

    held()


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_an_honest_stage_keeps_every_law(law):
    trial(law, Right)


@pytest.mark.parametrize(("law", "stage"), WRONG, ids=lambda x: x.__name__)
def test_a_law_refuses_the_stage_that_breaks_it(law, stage):
    with pytest.raises(AssertionError):
        trial(law, stage)
