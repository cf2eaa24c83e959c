"""A device that fails in the middle of a run: who is told, what is delivered; and nobody waits in vain."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from kernels import DeviceLost, OutOfMemory, Pending
from kernels.portable.backend import Portable
from pipeline.build import build
from pipeline.cli import main
from pipeline.ends.memory import Memory, MemorySource
from pipeline.errors import GraphError
from pipeline.run import Run

SAID = "cuda: NVIDIA H200 stopped answering, noticed while fetching: cudaErrorIllegalAddress; start again"
SECONDS = 1.6
ANSWERS = 52  # the first 39 stand for the prompt and say nothing


class Failing(Portable):
    """Fetches as a GPU does, later than asked for, and is lost after so many answers.

    shows : whether polling says that the answer will not come; otherwise only waiting for it does
    """

    def __init__(self, answers: int, shows: bool = True):
        super().__init__()
        self._left, self._shows = answers, shows

    def fetch(self, tensor: np.ndarray) -> Pending:
        self._left -= 1
        taken, lost = tensor.copy(), self._left < 0
        polls, waited = itertools.count(), []

        def take() -> np.ndarray:
            waited.append(True)
            if lost:
                raise DeviceLost(SAID)
            return taken

        def ready() -> bool:
            return next(polls) > 0 if self._shows or not lost else bool(waited)

        return Pending(take, ready)


@pytest.fixture
def failing(tiny_run: Callable[..., Run]) -> Callable[..., Run]:
    def make(answers: int, more: str = "", **options: bool) -> Run:
        run = tiny_run(more)
        run.plan = build(run.graph, Failing(answers, **options))
        return run

    return make


@pytest.mark.parametrize("shows", [True, False])
def test_what_was_heard_before_the_device_was_lost_is_delivered(failing, tiny_run, restless, shows):
    audio = restless(SECONDS)
    whole = tiny_run().transcribe(audio).text
    with pytest.raises(DeviceLost, match="stopped answering") as caught:
        failing(ANSWERS, shows=shows).transcribe(audio)
    heard = caught.value.transcript
    assert heard and whole.startswith(heard) and heard != whole


def test_a_loop_gets_what_was_heard_and_then_the_error(failing, restless):
    async def blocks() -> AsyncIterator[np.ndarray]:
        yield restless(SECONDS)

    async def listen() -> list[str]:
        heard = []
        with pytest.raises(DeviceLost):
            async for text in failing(ANSWERS).stream(blocks()):
                heard.append(text)
        return heard

    assert asyncio.run(listen())


@pytest.mark.parametrize("shows", [True, False])
def test_every_recording_is_told_also_those_not_begun(failing, restless, shows):
    run, kept = failing(ANSWERS, "lanes: {count: 2, wait: 2s}\n", shows=shows), [Memory() for _ in range(4)]
    jobs = [(MemorySource(restless(SECONDS), 16_000), [(run.text_node, memory)]) for memory in kept]
    failed = run.batch(jobs)
    assert [type(error) for _, error in failed] == [DeviceLost] * 4
    assert [memory.closed for memory in kept] == [True, True, False, False]
    assert kept[0].text or kept[1].text  # one may have been heard before the other


def test_the_command_line_says_it_in_one_line_and_keeps_what_was_said(
    monkeypatch, capsys, tmp_path, tiny_folder
):
    monkeypatch.setattr("pipeline.build.open_chosen", lambda name, options: Failing(ANSWERS))
    page = tmp_path / "said.jsonl"
    words = ["run", "file", "--weights", str(tiny_folder), "--set", f"sink.jsonl.path={page}"]
    assert main(words) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == SAID
    assert page.read_text()


def test_no_room_for_the_lanes_is_said_before_anything_is_heard(monkeypatch, capsys, tiny_folder):
    class Full(Portable):
        def ring(self, *shape):
            raise OutOfMemory(
                "cuda: 3,000.0 MB asked for, 10.0 MB of 8,000.0 MB on NVIDIA T4 are free; kv: q8"
            )

    monkeypatch.setattr("pipeline.build.open_chosen", lambda name, options: Full())
    assert main(["run", "file", "--weights", str(tiny_folder), "--set", "sink=lines"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.strip().splitlines()[-1].startswith("cuda: 3,000.0 MB asked for")


NARROWER = r"context, or .* \(backend\.kv=q8\)$"


@pytest.mark.parametrize(
    ("name", "kv", "cure"),
    [("cuda", "f16", NARROWER), ("cuda", "q8", "context$"), ("cpu", "f16", "context$")],
)
def test_lanes_are_held_against_the_memory_of_the_device(tiny_run, name, kv, cure):
    run = tiny_run("lanes: {count: 11}\n")
    lane = build(run.graph, Portable()).lane_bytes

    class Small(Portable):
        def free_bytes(self):
            return 10 * lane

    backend = Small()
    backend.name, backend.kv = name, kv
    with pytest.raises(GraphError, match=f"11 lanes keep .* are free; at most 10 fit, .*{cure}"):
        build(run.graph, backend)
    build(tiny_run("lanes: {count: 10}\n").graph, Small())


def test_engines_that_share_a_backend_take_turns_where_it_asks_for_that(tiny_run, restless):
    run = tiny_run()
    run.plan.backend.turn = threading.RLock()
    encoder, inside, most = run.plan.built["encoder"], [0], [0]
    step = encoder.step

    def slow(state, packet):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)  # another thread gets its chance
        answer = step(state, packet)
        inside[0] -= 1
        return answer

    run.plan.built["encoder"] = Stepping(encoder, slow)
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(run.transcribe(restless(1.0)).text)) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3 and len(set(said)) == 1 and most == [1]


class Stepping:
    """A stage with another `step`."""

    def __init__(self, whole, step):
        self._whole, self.step = whole, step

    def __getattr__(self, name):
        return getattr(self._whole, name)
