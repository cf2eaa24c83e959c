"""Lane buckets and recordings: which lanes a step touches, and when it is recorded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stages import Packet, Span
from stages.layers.replay import Active, Replays, bucket, first_lanes
from tests.compare import assert_same
from tests.stages.tape import Tape


class Counted(Tape):
    """Says how often it has recorded."""

    captures = 0

    def capture(self, fn):
        self.captures += 1
        return super().capture(fn)


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """A stage's state at its smallest: each lane's running total."""

    total: Any
    one: Any
    replays: Replays


def opened(ops: Tape, lanes: int) -> Total:
    return Total(ops.zeros((lanes, 2)), ops.upload(np.ones((lanes, 2), np.float32)), Replays())


def packet(lanes: int, *at_work: int) -> Packet:
    spans = tuple(Span(0, 1) if lane in at_work else None for lane in range(lanes))
    return Packet(np.zeros((lanes, 1)), spans)


@pytest.mark.parametrize(
    ("lanes", "at_work", "touched"),
    [
        (1, [0], 1), (8, [0], 1), (8, [1], 2), (8, [0, 2], 4), (8, [3], 4), (8, [4], 8), (5, [4], 5),
        (6, [], 1),
    ],
)  # fmt: skip
def test_a_bucket_is_the_smallest_that_holds_the_highest_lane_at_work(lanes, at_work, touched):
    assert bucket(packet(lanes, *at_work)) == touched


def test_first_lanes_are_the_same_memory():
    ops = Tape()
    state = (ops.ring(4, 1, 3, 2), opened(ops, 4))
    ring, part = first_lanes(state, 2)
    part.total[...] = 7
    ring.k[...] = 5
    assert ring.count.shape == (2,) and part.replays is state[1].replays
    assert_same(state[1].total[:, 0], np.array([7, 7, 0, 0], np.float32), what="total")
    assert_same(state[0].k[:, 0, 0, 0], np.array([5, 5, 0, 0], np.float32), what="ring.k")


def test_a_bucket_is_recorded_once_behind_its_first_step():
    ops = Counted()
    state = opened(ops, 4)

    def step(s: Total) -> None:
        ops.add(s.total, s.total, s.one)

    for n, lanes in enumerate([2, 2, 1, 4, 2, 1]):
        state.replays.run(ops, step, state, lanes)
        assert ops.captures == [1, 1, 2, 3, 3, 3][n]
    assert_same(state.total[:, 0], np.array([6, 4, 1, 1], np.float32), what="steps that each lane took")


def test_a_copied_state_records_anew():
    ops = Counted()
    state = opened(ops, 1)

    def step(s: Total) -> None:
        ops.add(s.total, s.total, s.one)

    state.replays.run(ops, step, state, 1)
    twin = copy.deepcopy(state)
    for _ in range(2):
        twin.replays.run(ops, step, twin, 1)
    assert ops.captures == 2
    assert (state.total[0, 0], twin.total[0, 0]) == (1, 3)


def test_active_words_follow_the_packets():
    ops = Tape()
    active = Active.make(ops, 3)
    for at_work, words in (([0, 2], [1, 0, 1]), ([0, 2], [1, 0, 1]), ([1], [0, 1, 0]), ([], [0, 0, 0])):
        active.follow(ops, packet(3, *at_work))
        assert_same(active.words, np.array(words, np.int32), what=f"{at_work}")
