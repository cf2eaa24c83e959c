"""Stages inside somebody else's Rx pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import reactivex as rx
from reactivex import operators as ops

from pipeline.metrics import StageMeter
from pipeline.operators import operator
from stages import ClockError, Cut, Packet, Span, bind, pcm
from stages.audio.mel import Mel
from stages.audio.pad import Pad
from stages.audio.resample import Resample


def samples(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32)


def test_bare_arrays_become_packets_and_the_end_flushes():
    audio, got = samples(16_000), []
    rx.from_iterable(np.array_split(audio, 7)).pipe(operator(Mel(pcm(16_000)))).subscribe(got.append)
    whole = bind(Mel(pcm(16_000)))
    expected = np.concatenate([p.data[0] for p in [*whole.step(audio), *whole.flush()]])
    assert np.array_equal(np.concatenate([p.data[0] for p in got]), expected)
    assert got[0].spans[0].start == 0 and got[-1].spans[0].stop == 16_000


def test_every_subscription_has_a_state_of_its_own():
    stream = rx.from_iterable([samples(1600)]).pipe(operator(Mel(pcm(16_000))))
    first, second = [], []
    stream.subscribe(first.append)
    stream.subscribe(second.append)
    assert [p.spans for p in first] == [p.spans for p in second]


def test_a_cut_flushes_the_stage_and_travels_behind_what_that_gave():
    pad = Pad(pcm(16_000), left_ms=80, right_ms=80)
    block, got = samples(1280), []
    items = [Packet(block[None], (Span(0, 1280),)), Cut(1280), Packet(block[None], (Span(5000, 6280),))]
    rx.from_iterable(items).pipe(operator(pad)).subscribe(got.append)
    kinds = ["cut" if isinstance(p, Cut) else (p.spans[0].start, p.spans[0].stop) for p in got]
    assert kinds == [(-1280, 0), (0, 1280), (1280, 2560), "cut", (3720, 5000), (5000, 6280), (6280, 7560)]


def test_a_cut_changes_its_clock_where_the_samples_do():
    got = []
    stage = Resample(pcm(48_000), to=16_000)
    items = [Packet(samples(4800)[None], (Span(0, 4800),)), Cut(4800)]
    rx.from_iterable(items).pipe(operator(stage)).subscribe(got.append)
    assert [p.at for p in got if isinstance(p, Cut)] == [1600]


def test_a_failing_stage_reaches_on_error_and_nobody_else():
    errors, got = [], []
    items = [Packet(samples(1280)[None], (Span(0, 1280),)), Packet(samples(1280)[None], (Span(9999, 11279),))]
    stream = rx.from_iterable(items).pipe(operator(Mel(pcm(16_000))), ops.share())
    stream.subscribe(got.append, errors.append)
    assert len(got) == 1 and isinstance(errors[0], ClockError)


def test_the_meter_counts_what_went_through():
    meter = StageMeter()
    rx.from_iterable(np.array_split(samples(8000), 5)).pipe(operator(Mel(pcm(16_000)), meter)).subscribe()
    assert (meter.items, meter.steps) == (8000, 6) and meter.busy_s >= meter.worst_s > 0


@pytest.mark.parametrize("count", [0, 1, 399])
def test_a_stream_shorter_than_a_window_ends_cleanly(count):
    got = []
    rx.from_iterable([samples(count)]).pipe(operator(Mel(pcm(16_000)))).subscribe(got.append)
    assert sum(p.items for p in got) == count // 160


def test_what_a_subscriber_raises_reaches_whoever_pushes():
    def plot(packet):
        raise LookupError("no such window")

    with pytest.raises(LookupError, match="no such window"):
        rx.from_iterable([samples(1600)]).pipe(operator(Mel(pcm(16_000)))).subscribe(plot)
