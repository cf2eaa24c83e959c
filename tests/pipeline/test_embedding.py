"""The library in somebody else's program: loops left early, runs side by side, streams that break off."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

import pipeline
from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.errors import GraphError, SourceError

STREAMS = 24  # more than asyncio has threads of its own on two cores


@pytest.fixture
def reading(tiny_run, restless, tmp_path) -> Callable[..., pipeline.Run]:
    """The tiny model on a recording of 3 s, with the sinks that a test needs."""
    soundfile.write(tmp_path / "in.wav", restless(3.0), 16_000, subtype="FLOAT")
    return lambda more="": tiny_run(f"source: {{file: {{path: {tmp_path}/in.wav, block: 100ms}}}}\n{more}")


def threads(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def wait_for_threads(prefix: str) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            thread.join(30)


def test_a_graph_can_be_iterated_over(reading, restless):
    with reading() as graph:
        assert list(graph) == list(graph.transcribe(restless(3.0)).pieces)


def test_a_loop_leaves_standard_output_alone_and_files_are_written(reading, tmp_path, capsys):
    with reading(f"sinks: [terminal: {{}}, lines: {{path: {tmp_path}/out.txt}}]\n") as graph:
        text = "".join(map(str, graph))
    assert (tmp_path / "out.txt").read_text() == text.lstrip() + "\n" != "\n"
    assert capsys.readouterr().out == ""


def test_a_run_writes_to_the_sinks_of_its_graph(reading, capsys):
    with reading("sink: {lines: {}}\n") as graph:
        graph.run()
        assert capsys.readouterr().out == "".join(map(str, graph)).lstrip() + "\n"


def test_a_loop_that_is_left_lets_go_of_everything(reading, tmp_path):
    reports = []
    with reading(f"sink: {{wav: {{path: {tmp_path}/out.wav, from: resample}}}}\n") as graph:
        graph._on_metrics = reports.append
        first = next(iter(graph))
        for text in graph:
            assert text == first
            break
        assert not graph._engines and len(reports) == 2
    wait_for_threads("source")
    assert soundfile.info(tmp_path / "out.wav").frames, "its sink was closed"


def test_closing_a_run_ends_a_loop_on_another_thread(tiny_run, restless):
    run, source, kept = tiny_run(), PushSource(16_000), Memory()
    working = threading.Thread(target=lambda: run.batch([(source, [(run.text_node, kept)])]))
    working.start()
    source.push(restless(1.0))
    while not kept.pieces:
        threading.Event().wait(0.001)
    run.close()
    working.join(30)
    assert not working.is_alive() and kept.closed


def test_runs_on_two_threads_do_not_end_each_other(tiny_run, restless):
    run, audio = tiny_run(), restless(3.0)
    sources, kept = [PushSource(16_000), PushSource(16_000)], [Memory(), Memory()]
    working = []
    for source, memory in zip(sources, kept, strict=True):
        working.append(threading.Thread(target=run.batch, args=([(source, [(run.text_node, memory)])],)))
        working[-1].start()
        source.push(audio[:24_000])
        while not memory.pieces:
            threading.Event().wait(0.001)
    for source, thread in zip(sources, working, strict=True):  # the first to begin is the first to end
        source.push(audio[24_000:])
        source.end()
        thread.join(30)
    assert kept[0].pieces == kept[1].pieces == list(run.transcribe(audio).pieces)


def test_a_recording_can_be_transcribed_within_a_loop(reading, restless):
    with reading() as graph:
        whole, alone, heard = list(graph), graph.transcribe(restless(0.5)).pieces, []
        for piece in graph:
            heard.append(piece)
            assert len(heard) > 3 or graph.transcribe(restless(0.5)).pieces == alone
    assert heard == whole


def test_a_stop_from_a_signal_handler_finishes_what_was_heard(tiny_run, restless):
    run, source, kept = tiny_run(), PushSource(16_000), Memory()
    previous = signal.signal(signal.SIGINT, lambda number, frame: run.stop())

    def speak():
        source.push(restless(2.0))
        while source.held_s or not kept.packets:
            threading.Event().wait(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    speaking = threading.Thread(target=speak)
    speaking.start()
    try:
        assert run.batch([(source, [(run.text_node, kept)])]) == []
    finally:
        signal.signal(signal.SIGINT, previous)
        speaking.join(30)
    assert kept.pieces == list(run.transcribe(restless(2.0)).pieces)


def test_loading_tells_how_far_it_is(tiny_run):
    told = []
    pipeline.Run(tiny_run().graph, on_load=lambda done, total: told.append((done, total)))
    (checkpoint,) = tiny_run().plan.checkpoints.values()
    stored = sum(entry.nbytes for entry in checkpoint.weights.entries.values())
    done = [part for part, _ in told]
    assert {whole for _, whole in told} == {stored}
    assert done == sorted(done) and (done[0], done[-1]) == (0, stored)
    assert len(set(done)) > 40, "it moves with every tensor"


async def arriving(audio: np.ndarray, parts: int = 10):
    for block in np.array_split(audio, parts):
        await asyncio.sleep(0)
        yield block


def test_any_number_of_streams_are_under_way_at_once(tiny_run, restless):
    run, audio = tiny_run(), restless(0.5)

    async def one():
        return [piece async for piece in run.stream(arriving(audio))]

    async def main():
        return await asyncio.gather(*(one() for _ in range(STREAMS)))

    expected = list(run.transcribe(audio).pieces)
    assert asyncio.run(asyncio.wait_for(main(), 60)) == [expected] * STREAMS


def test_a_stream_that_is_left_ends_its_work(tiny_run, restless):
    run = tiny_run()
    open_ended = asyncio.Event()

    async def forever():
        async for block in arriving(restless(2.0)):
            yield block
        await open_ended.wait()

    async def main():
        stream = run.stream(forever())
        first = await anext(stream)
        await stream.aclose()
        return first

    assert asyncio.run(asyncio.wait_for(main(), 60)) == run.transcribe(restless(2.0)).pieces[0]
    wait_for_threads("stream")
    assert not run._engines and not threads("stream")


def test_what_the_audio_of_a_stream_raises_comes_after_what_was_heard(tiny_run, restless):
    run, heard = tiny_run(), []

    async def broken():
        async for block in arriving(restless(2.0)):
            yield block
        raise ConnectionResetError("the peer has gone")

    async def main():
        async for piece in run.stream(broken()):
            heard.append(piece)

    with pytest.raises(ConnectionResetError, match="the peer has gone"):
        asyncio.run(asyncio.wait_for(main(), 60))
    assert heard == list(run.transcribe(restless(2.0)).pieces)


def test_a_stream_whose_run_fails_does_not_wait_for_more_audio(tiny_run, restless):
    run = tiny_run()

    async def endless():
        yield restless(0.5)
        await asyncio.Event().wait()

    async def main():
        return [piece async for piece in run.stream(endless(), rate_hz=0)]

    with pytest.raises(GraphError, match="0 Hz"):
        asyncio.run(asyncio.wait_for(main(), 30))


def test_a_stopped_stream_does_not_wait_for_more_audio(tiny_run, restless):
    run = tiny_run()

    async def endless():
        async for block in arriving(restless(2.0)):
            yield block
        await asyncio.Event().wait()

    async def main():
        heard = []
        async for piece in run.stream(endless()):
            heard.append(piece)
            run.stop()
        return heard

    assert asyncio.run(asyncio.wait_for(main(), 60))


def test_notes_are_those_of_the_last_run(tiny_run, restless):
    run, broken = tiny_run(), restless(1.0).copy()
    broken[100:103] = np.nan
    run.transcribe(broken)
    assert [note.partition(" broken")[0] for note in run.notes] == ["samples in memory: 3"]
    assert run.batch([(MemorySource(broken, 16_000), [(run.text_node, Memory())])]) == []
    assert len(run.notes) == 1
    run.transcribe(restless(1.0))
    assert run.notes == []


def test_what_is_no_audio_is_refused_in_words(tiny_run):
    for audio, said in (
        ([0.0, 0.1], "found list"), (b"RIFF", "found bytes"), (np.array(["a"]), "samples are numbers")
    ):  # fmt: skip
        with pytest.raises(SourceError, match=said):
            tiny_run().transcribe(audio)


def test_an_open_stream_is_read_like_a_file(tiny_run, tmp_path, restless):
    soundfile.write(tmp_path / "in.wav", restless(1.0), 16_000, subtype="FLOAT")
    with (tmp_path / "in.wav").open("rb") as stream:
        assert tiny_run().transcribe(stream).text == tiny_run().transcribe(tmp_path / "in.wav").text


def test_every_error_of_the_runtime_has_a_public_name():
    named = {error.__name__ for error in subclasses(pipeline.PipelineError)}
    assert named <= set(pipeline.__all__)
    assert all(hasattr(pipeline, name) for name in pipeline.__all__)


def subclasses(kind: type) -> list[type]:
    return [one for child in kind.__subclasses__() for one in [child, *subclasses(child)]]


def test_the_error_of_a_damaged_file_carries_what_was_heard_before(tiny_run, restless, tmp_path):
    soundfile.write(tmp_path / "whole.wav", restless(4.0), 16_000, subtype="PCM_16")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[: 44 + 2 * 16_000 * 3])
    with pytest.raises(SourceError) as caught:
        tiny_run().transcribe(tmp_path / "cut.wav")
    samples, _ = soundfile.read(tmp_path / "whole.wav", frames=48_000, dtype="float32")
    assert caught.value.transcript == tiny_run().transcribe(samples).text != ""
