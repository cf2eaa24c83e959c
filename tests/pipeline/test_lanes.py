"""Lanes in front of the device: who waits for whom, and what a session that leaves early leaves behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.lanes import Lanes
from pipeline.metrics import Metrics
from stages import Cut, Packet, Span

TOKEN = 1280  # samples; eight mel frames, the encoder's quantum


def lanes_of(run, **options) -> Lanes:
    stages = [(name, run.plan.built[name]) for name in run.plan.runs[0]]
    return Lanes(stages, run.plan.backend, Metrics(), **options)


def mel(token: int) -> Packet:
    frames = np.random.default_rng(token).normal(0, 0.5, (1, 8, 128)).astype(np.float32)
    return Packet(frames, (Span(token * TOKEN, (token + 1) * TOKEN),))


def nobody(*_) -> None:
    """Takes what is handed over and ends; listens to neither."""


def test_without_a_wait_a_full_lane_goes_ahead_of_its_neighbour(tiny_run):
    lanes, heard = lanes_of(tiny_run(), count=2), []
    speaker, _ = lanes.seat(heard.append, nobody), lanes.seat(nobody, nobody)
    speaker.push(mel(0))
    assert lanes.step() and len(heard) == 1


def test_a_full_lane_waits_until_the_wait_has_queued_behind_it(tiny_run):
    lanes, heard = lanes_of(tiny_run(), count=2, wait_ms=80.0), []
    speaker, _ = lanes.seat(heard.append, nobody), lanes.seat(nobody, nobody)
    speaker.push(mel(0))
    assert not lanes.step() and not heard
    speaker.push(mel(1))
    assert lanes.step() and heard


def test_neighbours_that_are_ready_together_do_not_wait(tiny_run):
    lanes, heard = lanes_of(tiny_run(), count=2, wait_ms=1000.0), []
    for seat in [lanes.seat(heard.append, nobody), lanes.seat(heard.append, nobody)]:
        seat.push(mel(0))
    assert lanes.step() and len(heard) == 2


@pytest.mark.parametrize("mark", ["cut", "end"])
def test_a_lane_waits_for_nobody_once_a_cut_or_the_end_is_behind_its_audio(tiny_run, mark):
    lanes, heard, over = lanes_of(tiny_run(), count=2, wait_ms=1000.0), [], []
    speaker, _ = lanes.seat(heard.append, lambda: over.append(True)), lanes.seat(nobody, nobody)
    speaker.push(mel(0))
    speaker.push(Cut(TOKEN)) if mark == "cut" else speaker.end()
    while lanes.step():
        pass
    assert isinstance(heard[0], Packet)
    assert heard[1:] == ([Cut(TOKEN)] if mark == "cut" else []) and bool(over) == (mark == "end")


@pytest.mark.parametrize("wait", ["20ms", "2s"])
def test_a_recording_ends_beside_a_live_session_that_is_silent(tiny_run, restless, wait):
    run, silent = tiny_run(f"lanes: {{count: 2, wait: {wait}}}\n"), PushSource(16_000)
    audio, kept, ended = restless(3.0), Memory(), threading.Event()
    kept.close = ended.set
    jobs = [(silent, [(run.text_node, Memory())]), (MemorySource(audio, 16_000), [(run.text_node, kept)])]
    working = threading.Thread(target=lambda: run.batch(jobs))
    working.start()
    assert ended.wait(30), "the recording waits for a speaker who says nothing"
    silent.end()
    working.join(30)
    assert kept.pieces == list(tiny_run().transcribe(audio).pieces)


def test_a_lane_that_was_left_midway_is_as_good_as_new(tiny_run):
    run = tiny_run()
    lanes, first, second = lanes_of(run), [], []
    seat = lanes.seat(nobody, nobody)
    for token in range(30):
        seat.push(mel(token))
        lanes.step()
    seat.push(mel(30))
    lanes.leave(seat)
    fresh = lanes_of(run)
    for row, heard in ((lanes, first), (fresh, second)):
        seat = row.seat(heard.append, nobody)
        for token in range(100, 130):
            seat.push(mel(token))
            row.step()
    assert len(first) == len(second) == 30
    assert [p.data.tolist() for p in first] == [p.data.tolist() for p in second]


def test_leaving_a_lane_asks_nothing_of_the_stages_that_may_have_failed(tiny_run):
    run = tiny_run()
    lanes = Lanes([("broken", Broken(run.plan.built["encoder"]))], run.plan.backend, Metrics())
    seat = lanes.seat(nobody, nobody)
    seat.push(mel(0))
    with pytest.raises(OSError, match="device lost"):
        lanes.step()
    lanes.leave(seat)


class Broken:
    """A device stage whose device has gone."""

    def __init__(self, whole):
        self.takes, self.gives = whole.takes, whole.gives
        self.quantum, self.lookahead = whole.quantum, whole.lookahead

    def open(self, lanes=1): ...

    def step(self, state, packet):
        raise OSError("device lost")

    def flush(self, state, lane=0):
        raise OSError("device still lost")
