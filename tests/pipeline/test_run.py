"""Whole graphs on a tiny model: one answer however the audio arrives, and failures that stay where they
happen.
"""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings

from pipeline.clock import VirtualTime
from pipeline.ends.file import FileSource
from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.engine import Engine
from pipeline.errors import Busy, GraphError, SinkError, SourceError
from tests.strategies import cuts
from tests.tiny import TINY


def heard(run, source) -> list:
    """All pieces, with their times, that `source` brings."""
    kept = Memory()
    failed = run.batch([(source, [(run.text_node, kept)])])
    assert not failed
    return kept.pieces


def test_a_transcript_has_text_pieces_and_times(tiny_run, restless):
    transcript = tiny_run().transcribe(restless(3.0))
    assert str(transcript) == "".join(map(str, transcript.pieces)).lstrip() != ""
    starts = [piece.span.start for piece in transcript.pieces]
    assert starts == sorted(starts) and all(start % 1280 == 0 for start in starts)


def test_any_chunking_of_the_audio_gives_the_same_text_and_times(tiny_run, restless):
    run, audio = tiny_run(), restless(4.0)
    expected = run.transcribe(audio).pieces

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(cuts(len(audio)))
    def check(at):
        assert heard(run, MemorySource(np.split(audio, at), 16_000)) == list(expected)

    check()


@pytest.mark.parametrize("pace", ["realtime", "8x"])
@pytest.mark.parametrize("block_ms", [80.0, 37.0, 500.0])
def test_live_and_offline_give_the_same_text_and_times(tiny_run, restless, pace, block_ms):
    run, audio = tiny_run(), restless(4.0)
    source = MemorySource(audio, 16_000, block_ms=block_ms, pace=pace)
    source.clock = VirtualTime()
    assert heard(run, source) == list(run.transcribe(audio).pieces)
    assert source.clock.now() > 0, "the virtual clock was never asked to wait"


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled_the_same_in_any_blocks(tiny_run, restless, rate):
    run, audio = tiny_run(), restless(3.0)
    whole = heard(run, MemorySource(audio, rate))
    assert whole and heard(run, MemorySource(audio, rate, block_ms=33.0)) == whole


def test_lanes_side_by_side_answer_as_each_would_alone(tiny_run, restless):
    run = tiny_run("lanes: {count: 3}\n")
    clips = [restless(seconds, seed) for seed, seconds in enumerate((2.0, 5.0, 0.5, 3.3, 1.0, 4.1, 0.01))]
    kept = [Memory() for _ in clips]
    jobs = [
        (MemorySource(c, 16_000, block_ms=400.0), [(run.text_node, k)])
        for c, k in zip(clips, kept, strict=True)
    ]
    assert run.batch(jobs) == []
    alone = tiny_run()
    assert [k.pieces for k in kept] == [list(alone.transcribe(clip).pieces) for clip in clips]


def test_more_sessions_than_lanes_are_refused_by_name(tiny_run, restless):
    run = tiny_run("lanes: {count: 1}\n")
    engine = Engine(run.plan)
    engine.open(MemorySource(restless(0.1), 16_000), [(run.text_node, Memory())])
    with pytest.raises(Busy, match="all 1 lanes are taken"):
        engine.open(MemorySource(restless(0.1), 16_000), [(run.text_node, Memory())])
    engine.close()


def test_what_was_heard_before_a_broken_file_ends_is_delivered(tiny_run, restless, tmp_path):
    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    soundfile.write(whole, restless(4.0), 16_000, subtype="PCM_16")
    cut.write_bytes(whole.read_bytes()[: 44 + 2 * 16_000 * 3])
    run, kept = tiny_run(), Memory()
    ((name, error),) = run.batch([(FileSource(cut), [(run.text_node, kept)])])
    assert isinstance(error, SourceError) and "cut.wav" in name
    assert kept.pieces == list(
        run.transcribe(soundfile.read(whole, frames=48_000, dtype="float32")[0]).pieces
    )


def test_one_broken_recording_among_many_harms_no_other(tiny_run, restless, tmp_path):
    (tmp_path / "bad.wav").write_text("this is not audio")
    run = tiny_run("lanes: {count: 2}\n")
    sources = [
        MemorySource(restless(1.0, 1), 16_000),
        FileSource(tmp_path / "bad.wav"),
        MemorySource(restless(1.0, 2), 16_000),
    ]
    kept = [Memory() for _ in sources]
    failed = run.batch([(source, [(run.text_node, k)]) for source, k in zip(sources, kept, strict=True)])
    assert [type(error) for _, error in failed] == [SourceError]
    assert kept[0].pieces and kept[2].pieces and not kept[1].pieces


class Failing:
    """Fails at its third piece of text."""

    TAKES = "text"

    def __init__(self):
        self.seen = 0

    def open(self, port): ...

    def write(self, packet, *, emitted_s=None):
        self.seen += len(packet.data)
        if self.seen >= 3:
            raise SinkError("disk full")

    def cut(self, at): ...

    def close(self): ...


def test_a_failing_sink_is_let_go_while_the_others_write_on(tiny_run, restless):
    run, kept, audio = tiny_run(), Memory(), restless(3.0)
    failed = run.batch([(MemorySource(audio, 16_000), [(run.text_node, Failing()), (run.text_node, kept)])])
    assert [str(error) for _, error in failed] == ["disk full"]
    assert kept.pieces == list(run.transcribe(audio).pieces)


def test_a_session_whose_only_sink_failed_hears_no_more(tiny_run, restless):
    run, source = tiny_run(), PushSource(16_000)
    done = threading.Thread(target=lambda: run.batch([(source, [(run.text_node, Failing())])]))
    done.start()
    pushed = 0
    while source.push(restless(0.5, pushed)) and pushed < 1000:  # ends by itself: nobody reads any more
        pushed += 1
    done.join(timeout=60)
    assert pushed < 1000 and not done.is_alive()


def test_stop_finishes_what_was_heard(tiny_run, restless):
    run, source, kept, audio = tiny_run(), PushSource(16_000), Memory(), restless(2.0)
    working = threading.Thread(target=lambda: run.batch([(source, [(run.text_node, kept)])]))
    working.start()
    source.push(audio)
    while source.held_s or not kept.packets:
        threading.Event().wait(0.01)
    run.stop()
    working.join(timeout=60)
    assert not working.is_alive()
    assert kept.pieces == list(run.transcribe(audio).pieces), "the delay was not drained after the stop"


def test_a_stop_before_the_first_block_ends_an_empty_run(tiny_run, restless):
    run = tiny_run()
    run.stop()
    assert run.transcribe(restless(1.0)).text == ""
    assert run.transcribe(restless(1.0)).text, "the next run hears again"


def test_an_event_loop_can_drive_the_engine(tiny_run, restless):
    run, kept, audio = tiny_run(), Memory(), restless(2.0)
    engine = Engine(run.plan)
    engine.open(MemorySource(audio, 16_000), [(run.text_node, kept)])
    asyncio.run(engine.run_async())
    assert kept.pieces == list(run.transcribe(audio).pieces)


def test_an_asynchronous_stream_gives_the_same_pieces(tiny_run, restless):
    run, audio = tiny_run(), restless(3.0)

    async def blocks():
        for block in np.array_split(audio, 20):
            await asyncio.sleep(0)
            yield block

    async def main():
        return [piece async for piece in run.stream(blocks())]

    assert asyncio.run(main()) == list(run.transcribe(audio).pieces)


def test_a_branch_keeps_the_audio_too(tiny_run, restless, tmp_path):
    audio = restless(1.0)
    soundfile.write(tmp_path / "in.wav", audio, 16_000, subtype="FLOAT")
    more = "source: {file: {path: IN/in.wav}}\nsinks: [memory: {}, wav: {path: IN/out.wav, from: resample}]\n"
    more = more.replace("IN", str(tmp_path))
    tiny_run(more).run()
    kept, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 16_000 and np.abs(kept - audio).max() < 1e-3  # 16-bit steps


def test_two_models_read_one_source(tiny_run, restless, tmp_path):
    more = "use: [{voxtral.yaml: {as: quick, delay: 160ms}}, {voxtral.yaml: {as: sure, delay: 960ms}}]\n"
    from pipeline.graph import parse_graph
    from pipeline.run import Run

    weights = str(next(iter(tiny_run().plan.checkpoints)))
    graph = parse_graph(more, folder=Path(__file__).parents[2] / "graphs", environ={"VOXTRAL": weights})
    run, audio, kept = Run(graph), restless(2.0), {}
    for node in run.plan.text_nodes:
        kept[node] = Memory()
    assert len(kept) == 2
    assert run.batch([(MemorySource(audio, 16_000), list(kept.items()))]) == []
    for memory, delay in zip(kept.values(), ("160ms", "960ms"), strict=True):
        assert memory.pieces == list(tiny_run(params={"delay": delay}).transcribe(audio).pieces)


def test_a_cut_ends_an_utterance_and_the_next_starts_afresh(tiny_run, restless, tmp_path):
    chain = (Path(__file__).parents[2] / "graphs" / "voxtral.yaml").read_text()
    (tmp_path / "cut.yaml").write_text(
        chain.replace("  - pad:", "  - segment: {silence: 300ms, preroll: 100ms}\n  - pad:")
    )
    from pipeline.graph import load_graph
    from pipeline.run import Run

    weights = next(iter(tiny_run().plan.checkpoints))
    run = Run(load_graph(tmp_path / "cut.yaml", params={"weights": str(weights)}))
    hum, quiet = 0.3 * restless(1.0, 5) / np.abs(restless(1.0, 5)).max(), np.zeros(24_000, np.float32)
    kept = Memory()
    assert (
        run.batch(
            [(MemorySource(np.concatenate([quiet, hum, quiet, hum, quiet]), 16_000), [(run.text_node, kept)])]
        )
        == []
    )
    assert len(kept.cuts) == 2
    starts = [packet.spans[0].start for packet in kept.packets]
    assert sum(b < a for a, b in pairwise(starts)) == 1, (
        "the second utterance has padding of its own"
    )


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("decoder.delay=960ms", "pad has delay 7680, but decoder .* need 15360 samples, delay: 960ms"),
        ("pad.left=1280ms", "pad has left 20480, but decoder .* need 40960 samples, left: 2560ms"),
        ("mel.ceiling=2.5", "mel has ceiling 2.5, but encoder .* need 1.5"),
    ],
)
def test_a_front_that_does_not_suit_the_weights_is_refused(tiny_run, override, complaint):
    with pytest.raises(GraphError, match=complaint):
        tiny_run("", override)


def test_lanes_that_memory_has_no_room_for_are_refused(tiny_run, monkeypatch):
    plan = tiny_run().plan
    lane = sum(getattr(stage, "lane_bytes", 0) for stage in plan.built.values())
    towers = (TINY.encoder, TINY.encoder.window + 63), (TINY.decoder, TINY.decoder.window)  # slots
    assert lane == sum(t.layers * plan.backend.ring_bytes(t.kv_heads, n, t.head_dim) for t, n in towers)
    monkeypatch.setattr("pipeline.build.memory_available", lambda: 10 * lane)
    assert tiny_run("lanes: {count: 10}\n").plan.graph.lanes.count == 10
    with pytest.raises(GraphError, match=r"11 lanes keep .* are free; at most 10 fit"):
        tiny_run("lanes: {count: 11}\n")


def test_metrics_count_every_stage_and_the_session(tiny_run, restless):
    from pipeline.graph import parse_graph
    from pipeline.run import Run

    reports = []
    weights = next(iter(tiny_run().plan.checkpoints))
    graph = parse_graph(
        "use: voxtral.yaml\n", folder=Path(__file__).parents[2] / "graphs", params={"weights": str(weights)}
    )
    transcript = Run(graph, on_metrics=reports.append).transcribe(restless(2.0))
    (report,) = reports
    tokens = 32 + 25 + 17  # left padding, the audio, right padding with the delay
    assert report["stages"]["decoder"]["items"] == tokens
    assert report["stages"]["encoder"]["items"] == 8 * tokens
    assert report["audio_s"] == 2.0 and 0 < report["rtf"] < 100
    assert report["sessions"][0]["pieces"] == len(transcript.pieces)
    assert {"lag_s", "worst_lag_s", "queued_s", "dropped_s"} <= report["sessions"][0].keys()
    assert "blank_run" in report["stages"]["text"]
    front, encoder = report["stages"]["resample"], report["stages"]["encoder"]
    assert front["queue_s"] == 2.0 and front["dropped_s"] == 0.0 and encoder["queue_s"] > 0
    delays = {name: stage["latency_s"] for name, stage in report["stages"].items()}
    assert delays == dict.fromkeys(delays, 0.0) | {"mel": 0.0025, "text": 0.48}
