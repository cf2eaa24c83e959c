"""Sessions and the pump: every session ends, whatever it is made of and whatever fails in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.engine import Engine
from pipeline.graph import parse_graph
from pipeline.run import Run
from tests.pipeline.test_lanes import Broken

GRAPHS = Path(__file__).parents[2] / "graphs"


@pytest.fixture
def recording(tmp_path, restless) -> Path:
    soundfile.write(tmp_path / "in.wav", restless(1.0), 16_000, subtype="FLOAT")
    return tmp_path / "in.wav"


def graph_of(text: str, **options) -> Run:
    return Run(parse_graph(text, folder=GRAPHS, **options))


def test_a_graph_that_nobody_reads_ends_with_its_source(recording):
    graph_of(f"source: {{file: {{path: {recording}}}}}\nchain: [resample: {{to: 16000}}]\n").run()


def test_a_source_may_stand_right_before_a_sink(recording, tmp_path, restless):
    sink = f"sink: {{wav: {{path: {tmp_path}/out.wav, subtype: FLOAT}}}}\n"
    graph_of(f"chain: []\nsource: {{file: {{path: {recording}}}}}\n{sink}").run()
    assert np.array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], restless(1.0))


def two_models(tiny_folder) -> Run:
    return graph_of(
        "use: [{voxtral.yaml: {as: one}}, {voxtral.yaml: {as: two}}]\n", environ={"VOXTRAL": str(tiny_folder)}
    )


def test_a_branch_that_nobody_reads_gives_its_lane_back_before_the_next_session(tiny_folder, restless):
    run = two_models(tiny_folder)
    kept = [Memory() for _ in range(3)]
    jobs = [(MemorySource(restless(1.0), 16_000), [(run.plan.text_nodes[0], memory)]) for memory in kept]
    assert run.batch(jobs) == []
    assert kept[0].pieces and kept[0].pieces == kept[1].pieces == kept[2].pieces


class Choosy:
    """Fails at the second packet."""

    quantum, lookahead = 1, 0

    def __init__(self, like):
        self.takes, self.gives = like.takes, like.gives

    def open(self, lanes=1):
        return [0]

    def step(self, state, packet):
        state[0] += 1
        if state[0] == 2:
            raise ValueError("not this one")
        return [packet]

    def flush(self, state, lane=0):
        return []


def test_a_stage_that_fails_is_reported_once_however_many_read_it(tiny_run, restless):
    run, kept = tiny_run(), [Memory(), Memory()]
    name = "resample"
    upstream = run.plan.stages(MemorySource(restless(0.1), 16_000).open())[name]
    run.plan._host[name, upstream.takes] = Choosy(upstream)
    source = MemorySource(restless(1.0), 16_000, block_ms=100.0)
    failed = run.batch([(source, [(name, kept[0]), (name, kept[1]), (run.text_node, Memory())])])
    assert [str(error) for _, error in failed] == ["not this one"]
    assert [len(memory.packets) for memory in kept] == [1, 1] and all(memory.closed for memory in kept)


def test_a_lost_device_ends_every_session_and_closes_every_sink(tiny_run, restless):
    run, kept = tiny_run("lanes: {count: 2}\n"), [Memory(), Memory(), Memory()]
    run.plan.built["encoder"] = Broken(run.plan.built["encoder"])
    jobs = [(MemorySource(restless(1.0), 16_000), [(run.text_node, memory)]) for memory in kept]
    failed = run.batch(jobs)
    assert [str(error) for _, error in failed] == ["device lost"] * 3, "the third was never begun"
    assert [memory.closed for memory in kept] == [True, True, False]


def test_an_event_loop_that_drives_the_engine_can_rest(tiny_run, restless):
    engine, source, kept = Engine(tiny_run().plan), PushSource(16_000), Memory()
    engine.open(source, [("text", kept)])

    async def main():
        driving = asyncio.create_task(engine.run_async())
        source.push(restless(1.0))
        while not kept.pieces:
            engine.bell.ring()  # news that comes while the engine is at work
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
        rested = not engine.bell.rung()
        source.end()
        await driving
        return rested

    assert asyncio.run(main()), "a bell that stays rung makes the loop spin"


def test_an_event_loop_that_gives_up_closes_the_engine(tiny_run):
    engine, kept = Engine(tiny_run().plan), Memory()
    engine.open(PushSource(16_000), [("text", kept)])

    async def main():
        driving = asyncio.create_task(engine.run_async())
        await asyncio.sleep(0.01)
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)

    asyncio.run(main())  # would not return while a thread waits for the bell
    assert kept.closed and not engine.sessions


def test_lag_counts_until_the_audio_has_left_the_lanes(tiny_run, restless):
    engine = Engine(tiny_run().plan)
    session = engine.open(MemorySource(restless(1.0), 16_000), [("text", Memory())], start=False)
    session.intake.put(restless(1.0))
    assert session.pull()
    session.settle()
    assert session.meter.worst_lag_s == 0.0, "the block still waits for its lane"
    session.intake.end()
    engine.run()
    assert session.meter.worst_lag_s > 0.0


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_the_backlog_is_counted_on_the_clock_of_the_lanes(tiny_folder, restless, rate):
    chain = "chain: [resample: {to: 16000}, mel, voxtral.encoder, voxtral.adapter]\n"
    engine = Engine(graph_of(f"weights: {tiny_folder}\n{chain}").plan)
    session = engine.open(MemorySource(restless(0.1), rate), [("adapter", Memory())], start=False)
    for _ in range(40):
        session.intake.put(np.zeros(rate // 10, np.float32))
    taken_s = 0.0
    while session.pull():
        taken_s += 0.1
    engine.close()
    assert 0.5 <= taken_s <= 0.8, "the rest stays in the intake, where it is bounded"


def test_what_is_dropped_is_heard_as_silence_of_equal_length(tiny_run, restless):
    run, audio, kept = tiny_run(), restless(4.0), Memory()
    source = MemorySource(audio, 16_000)
    source.overrun, source.window_s = "drop", 1.0
    engine = Engine(run.plan)
    session = engine.open(source, [("text", kept)], start=False)
    for block in np.split(audio, 40):  # all of it before the engine has had a turn
        session.intake.put(block)
    session.intake.end()
    engine.run()
    dropped = audio.copy()
    dropped[: 3 * 16_000] = 0
    assert kept.pieces == list(run.transcribe(dropped).pieces) != list(run.transcribe(audio).pieces)
    assert session.meter.dropped_s == 3.0 and session.meter.audio_s == 4.0


def test_an_overrun_delivers_what_was_heard_and_then_says_so(tiny_run, restless):
    run, audio, kept = tiny_run(), restless(4.0), Memory()
    source = MemorySource(audio, 16_000, block_ms=100.0)
    source.overrun, source.window_s = "error", 1.0
    engine = Engine(run.plan)
    session = engine.open(source, [("text", kept)], start=False)
    session._read()  # the whole source, before the engine has had a turn
    engine.run()
    assert [type(error).__name__ for _, error in engine.failed] == ["Overrun"]
    assert kept.pieces == list(run.transcribe(audio[: round(1.1 * 16_000)]).pieces)
