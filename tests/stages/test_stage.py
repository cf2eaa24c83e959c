"""The small machinery every stage shares: regrouping, clocks, binding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import ClockError, Mel, Packet, Span, bind, pcm
from stages.stage import Regroup
from tests.compare import assert_same
from tests.strategies import cuts

HOP = 160


@given(st.data())
def test_regrouped_items_are_the_same_items_in_whole_quanta(data):
    quantum, count = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 40))
    items, regroup, rows = np.arange(2.0 * count).reshape(-1, 2), Regroup(quantum, HOP), []
    at = 1000
    for piece in np.split(items, data.draw(cuts(count))):
        rows += regroup.push(piece, Span(at, at + len(piece) * HOP))
        at += len(piece) * HOP
    assert all(len(row) % quantum == 0 and len(span) == len(row) * HOP for row, span in rows)
    spans = [span for _, span in rows]
    assert [s.start for s in spans] == [1000, *(s.stop for s in spans)][: len(spans)]
    whole = count // quantum * quantum
    assert_same(np.concatenate([items[:0], *(row for row, _ in rows)]), items[:whole], what="items")


def test_regrouping_keeps_no_hold_on_a_borrowed_buffer():
    regroup, buffer = Regroup(4, HOP), np.zeros((6, 1), np.float32)
    regroup.push(buffer, Span(0, 6 * HOP))
    buffer[:] = 9  # its owner goes on
    ((row, _),) = regroup.push(np.ones((2, 1), np.float32), Span(6 * HOP, 8 * HOP))
    assert_same(row[:, 0], np.array([0, 0, 1, 1], np.float32), what="held and new")


def test_a_remainder_is_dropped_at_the_end_of_a_stream():
    regroup = Regroup(4, HOP)
    regroup.push(np.zeros(3), Span(0, 3 * HOP))
    regroup.drain()
    assert regroup.push(np.zeros(1), Span(0, HOP)) == []


def test_a_packet_that_does_not_continue_the_last_one_is_refused():
    mel = Mel(pcm(16_000))
    state, samples = mel.open(), np.zeros((1, 100), np.float32)
    mel.step(state, Packet(samples, (Span(0, 100),)))
    with pytest.raises(ClockError, match="mel: expected a packet from sample 100, got one from 101"):
        mel.step(state, Packet(samples, (Span(101, 201),)))


def test_a_bound_stage_begins_anew_after_a_flush():
    mel, clip = bind(Mel(pcm(16_000))), np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    first, second = ([*mel.step(clip), *mel.flush()] for _ in range(2))
    assert [p.spans for p in first] == [p.spans for p in second]
    assert_same(first[0].data, second[0].data, what="mel")
