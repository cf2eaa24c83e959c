"""Ends made of arrays: the library's own and the tests' double."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clock import RealTime, VirtualTime
from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.errors import GraphError, SourceError
from stages.packet import Packet, Span, Text
from stages.stage import Port, pcm

RAMP = np.linspace(-1, 1, 1_000, dtype=np.float32)


@given(block_ms=st.floats(1, 200))
def test_an_array_is_cut_into_blocks(block_ms: float) -> None:
    source = MemorySource(RAMP, 8_000, block_ms=block_ms)
    assert source.open() == pcm(8_000) and source.duration_s == 0.125
    np.testing.assert_array_equal(np.concatenate(list(source.blocks())), RAMP)


def test_an_iterable_keeps_its_own_cuts() -> None:
    source = MemorySource((RAMP[n : n + 300] for n in range(0, 1_000, 300)), 8_000)
    assert [len(block) for block in source.blocks()] == [300, 300, 300, 100]
    assert source.duration_s is None


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float64])
def test_other_types_are_scaled_to_one(kind: type) -> None:
    floating = np.issubdtype(kind, np.floating)
    low, high = (-1.0, 1.0) if floating else (np.iinfo(kind).min, np.iinfo(kind).max)
    (block,) = MemorySource(np.array([low, high], kind), 8_000).blocks()
    assert block.dtype == np.float32
    np.testing.assert_allclose(block, [-1, 1], atol=2.0**-7)  # 8 bits reach 127 / 128


def test_channels_are_averaged() -> None:
    (block,) = MemorySource(np.array([[0.2, 0.4], [0.0, 1.0]]), 8_000).blocks()
    np.testing.assert_allclose(block, [0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize("samples", [np.zeros((2, 2, 2)), np.array(["a"]), np.array(1.0), np.zeros((4, 0))])
def test_what_are_no_samples_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(SourceError, match="samples are numbers"):
        list(MemorySource([samples], 8_000).blocks())


def test_pace_follows_a_virtual_clock() -> None:
    source = MemorySource(RAMP, 1_000, block_ms=100, pace="4x")
    source.clock = clock = VirtualTime()
    assert [clock.now() for _ in source.blocks()] == pytest.approx([0.025 * n for n in range(1, 11)])


def test_real_time_waits_for_a_moment_and_not_for_the_past() -> None:
    clock = RealTime()
    moment = clock.now() + 0.02
    clock.wait_until(moment, threading.Event())
    assert clock.now() >= moment
    clock.wait_until(moment - 1e6, threading.Event())


def test_a_stopped_wait_returns_at_once() -> None:
    stop = threading.Event()
    stop.set()
    clock = RealTime()
    clock.wait_until(clock.now() + 1e6, stop)


def test_pushed_samples_arrive_in_order() -> None:
    source = PushSource(1_000, window_s=0.2)
    writer = threading.Thread(target=lambda: [source.push(RAMP[n : n + 100]) for n in range(0, 1_000, 100)])
    ender = threading.Thread(target=lambda: (writer.join(), source.end()))
    writer.start()
    ender.start()
    np.testing.assert_array_equal(np.concatenate(list(source.blocks())), RAMP)
    ender.join()


def test_a_full_window_takes_no_more_unless_one_waits() -> None:
    source = PushSource(1_000, window_s=0.25)
    taken = [source.push(RAMP[:100], wait=False) for _ in range(5)]
    assert taken == [True, True, True, False, False] and source.held_s == 0.3
    next(source.blocks())
    assert source.push(RAMP[:100], wait=False)


def test_close_frees_both_sides_of_a_push() -> None:
    source = PushSource(1_000, window_s=0.1)
    source.push(RAMP)
    answers: list[object] = []
    writer = threading.Thread(target=lambda: answers.append(source.push(RAMP)))
    writer.start()
    source.close()
    writer.join(10)
    assert answers == [False] and list(source.blocks()) == []


def test_push_after_end_is_an_error() -> None:
    source = PushSource(1_000)
    source.end()
    with pytest.raises(SourceError, match="after end"):
        source.push(RAMP)


def test_a_window_has_a_length() -> None:
    with pytest.raises(GraphError):
        PushSource(1_000, window_s=0)


def test_memory_keeps_packets_cuts_and_text() -> None:
    sink = Memory()
    sink.open(Port("text", 16_000, 1_280, 0))
    packet = Packet([Text(" one", Span(0, 1_280)), Text(" two", Span(1_280, 2_560))], (Span(0, 2_560),))
    sink.write(packet, emitted_s=0.5)
    sink.cut(2_560)
    sink.close()
    assert (sink.text, sink.cuts, sink.closed, sink.emitted_s) == ("one two", [2_560], True, [0.5])
    assert sink.packets == [packet] and [piece.text for piece in sink.pieces] == [" one", " two"]


def test_a_long_array_is_not_copied_whole():
    audio = np.zeros(1 << 22, np.int16)
    source = MemorySource(audio, 16_000, block_ms=80.0)
    tracemalloc.start()
    assert sum(map(len, source.blocks())) == len(audio)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < audio.nbytes / 8
