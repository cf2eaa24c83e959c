"""The queue between source and engine: bounded in seconds of audio, honest about time, never losing a sample
unsaid.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Overrun
from pipeline.intake import Bell, Intake


def ramp(start: int, count: int) -> np.ndarray:
    return np.arange(start + 1, start + count + 1, dtype=np.float32)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), max_size=40))
def test_dropping_keeps_the_clock_and_every_later_sample(turns):
    intake, pushed, taken = Intake(100, Bell(), window_s=0.5, overrun="drop"), 0, []
    for count, takes in turns:
        intake.put(ramp(pushed, count))
        pushed += count
        assert intake.waiting - intake._silence <= max(50, count), (
            "more audio waits than the window and one block"
        )
        taken += [taking[0] for _ in range(takes) if (taking := intake.take())]
    intake.end()
    while taking := intake.take():
        taken.append(taking[0])
    heard = np.concatenate([np.zeros(0, np.float32), *taken])
    assert len(heard) == pushed == intake.pushed == intake.drained
    lost = heard == 0
    assert lost.sum() == intake.dropped
    assert np.array_equal(heard[~lost], ramp(0, pushed)[~lost]), "what was kept stands where it was said"
    assert intake.exhausted


def test_an_overrun_is_an_error_where_the_graph_says_so():
    intake = Intake(16_000, Bell(), window_s=0.1, overrun="error")
    intake.put(ramp(0, 1600))
    with pytest.raises(Overrun, match=r"0\.2 s of audio wait, the window is 0\.1 s.*overrun: drop"):
        intake.put(ramp(0, 1600))


def test_a_source_that_can_wait_waits_and_loses_nothing():
    intake, blocks = Intake(100, Bell(), window_s=0.2), [ramp(10 * n, 10) for n in range(30)]
    writer = threading.Thread(target=lambda: ([intake.put(b) for b in blocks], intake.end()))
    writer.start()
    taken, most = [], 0
    while not intake.exhausted:
        most = max(most, intake.waiting)
        if taking := intake.take():
            taken.append(taking[0])
    writer.join()
    assert np.array_equal(np.concatenate(taken), np.concatenate(blocks)) and most <= 20


def test_an_ended_intake_takes_no_more_and_frees_a_waiting_source():
    intake = Intake(100, Bell(), window_s=0.1)
    intake.put(ramp(0, 10))
    answers: list[bool] = []
    writer = threading.Thread(target=lambda: answers.append(intake.put(ramp(10, 10))))
    writer.start()
    intake.end()
    writer.join(timeout=10)
    assert answers == [False] and len(intake.take()[0]) == 10 and intake.exhausted


def test_the_bell_rings_for_news_and_falls_silent():
    bell = Bell()
    intake = Intake(100, bell)
    assert not bell.rung()
    intake.put(ramp(0, 1))
    assert bell.rung() and bell.wait(0) and not bell.rung()


def test_what_a_source_says_about_being_stopped_is_no_error_of_the_audio():
    intake, early = Intake(100, Bell()), Intake(100, Bell())
    intake.end()
    intake.end(Overrun("cut short"))
    early.end(Overrun("cut short"))
    early.end()
    assert intake.error is None and isinstance(early.error, Overrun)
