"""The library's face: `transcribe` a recording in one call, `load` a graph and iterate over its text.

print(transcribe("talk.flac"))
with load("mic") as graph:
    for text in graph: print(text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.build import Plan, build
from pipeline.catalog import make_sink, make_source
from pipeline.ends.file import FileSource
from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.engine import Engine, Job
from pipeline.errors import GraphError, SinkClosed
from pipeline.graph import Graph, load_graph
from pipeline.metrics import Metrics
from stages import Packet, Port, Text


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was recognised, and when each piece was said (`Text.span`, samples of a clock of `rate` Hz)."""

    text: str
    pieces: tuple[Text, ...]
    rate: int

    def __str__(self) -> str:
        return self.text


class Pieces:
    """A sink that hands every piece on as it comes; `listens` marks it as no reason to go on when all others
    have failed.
    """

    TAKES = "text"
    listens = True

    def __init__(self, deliver: Callable[[Text], object]):
        self._deliver = deliver

    def open(self, port: Port) -> None: ...

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        for piece in packet.data:
            self._deliver(piece)

    def cut(self, at: int) -> None: ...

    def close(self) -> None: ...


class Run:
    """A graph with its weights loaded, ready to run: once through its own ends, or on audio handed to it.

    Parameters
    ----------
    graph : from `load_graph`
    on_metrics : called with `Metrics.report()` at the end of every run
    """

    def __init__(self, graph: Graph, *, on_metrics: Callable[[dict[str, Any]], None] | None = None):
        self.graph = graph
        self.plan: Plan = build(graph)
        self._on_metrics = on_metrics
        self.notes: list[str] = []  # what sources wanted known, such as samples they had to replace
        self._engine: Engine | None = None
        self._stopped = False  # a stop that came before there was an engine

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Text]:
        """Run from the graph's own source to its own sinks, yielding every piece of text on the way."""
        if self.graph.source is None:
            raise GraphError(
                f"{self.graph.name}: has no source to iterate over; use a graph with one, or `transcribe`"
            )
        heard: deque[Text] = deque()
        sinks = [(end.upstream, make_sink(end)) for end in self.graph.sinks]
        return self._through(make_source(self.graph.source), [*sinks, *self._listeners(heard.append)], heard)

    def transcribe(self, audio: str | Path | np.ndarray, rate_hz: int = 16_000) -> Transcript:
        """The text of a recording, or of samples [n] or [n, channels] at `rate_hz`; the graph's own ends are
        left alone.

        Raises
        ------
        SourceError   the recording cannot be read to its end
        """
        source = MemorySource(audio, rate_hz) if isinstance(audio, np.ndarray) else FileSource(audio)
        kept = Memory()
        for _ in self._through(source, [(self.text_node, kept)]):
            pass
        return Transcript(kept.text, tuple(kept.pieces), kept.port.rate if kept.port else rate_hz)

    async def stream(self, audio: AsyncIterable[np.ndarray], rate_hz: int = 16_000) -> AsyncIterator[Text]:
        """Text of blocks that arrive asynchronously; the work is done on a thread, so the event loop stays
        free.
        """
        source, heard = PushSource(rate_hz), asyncio.Queue[Text | None]()
        loop = asyncio.get_running_loop()

        async def feed() -> None:
            try:
                async for block in audio:
                    await asyncio.to_thread(source.push, block)
            finally:
                source.end()

        def work() -> None:
            try:
                for _ in self._through(
                    source, self._listeners(lambda p: loop.call_soon_threadsafe(heard.put_nowait, p))
                ):
                    pass
            finally:
                loop.call_soon_threadsafe(heard.put_nowait, None)

        feeding, working = asyncio.create_task(feed()), asyncio.create_task(asyncio.to_thread(work))
        try:
            while (piece := await heard.get()) is not None:
                yield piece
            await feeding
            await working
        finally:
            feeding.cancel()
            source.close()

    def run(self) -> None:
        """Run from the graph's own source to its own sinks, to the end."""
        for _ in self:
            pass

    def batch(
        self, jobs: Iterable[Job], on_round: Callable[[], None] = lambda: None
    ) -> list[tuple[str, Exception]]:
        """Many recordings over the graph's lanes, each from its own source to its own sinks.

        What fails stops nothing else and is returned, as (label of the source, error). `on_round` is called
        whenever something has moved.
        """
        with self._running() as engine:
            engine.queue(jobs)
            for pending in engine.pump():
                on_round()
                pending.wait()
        return engine.failed

    def stop(self) -> None:
        """Hear no more; what has been heard is still finished and delivered. Safe from a signal handler."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()

    def close(self) -> None:
        """Let go of a run that is under way."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def text_node(self) -> str:
        """The node whose output is text.

        Raises
        ------
        GraphError   if there is none, or several
        """
        nodes = self.plan.text_nodes
        if len(nodes) != 1:
            raise GraphError(
                f"{self.graph.name}: expected one node that gives text, found {', '.join(nodes) or 'none'}"
            )
        return nodes[0]

    def _listeners(self, deliver: Callable[[Text], object]) -> list[tuple[str, Pieces]]:
        return [(node, Pieces(deliver)) for node in self.plan.text_nodes]

    def _through(
        self, source: Any, sinks: Sequence[tuple[str, Any]], heard: deque[Text] | None = None
    ) -> Iterator[Text]:
        """One session from end to end; yields what is in `heard` after every round."""
        heard = deque() if heard is None else heard
        with self._running() as engine:
            try:
                engine.open(source, sinks)
                for pending in engine.pump():
                    yield from drained(heard)
                    pending.wait()
                yield from drained(heard)
            finally:
                self.notes += [f"{source.label}: {note}" for note in source.notes]
        raise_first(engine.failed)

    @contextmanager
    def _running(self) -> Iterator[Engine]:
        """An engine for one run, which can be stopped and closed from outside while it lasts."""
        metrics = Metrics()
        self._engine = engine = Engine(self.plan, metrics)
        if self._stopped:
            engine.stop()
        try:
            yield engine
        finally:
            self.close()
            self._stopped = False
            if self._on_metrics:
                self._on_metrics(metrics.report())


def drained(pieces: deque[Text]) -> Iterator[Text]:
    while pieces:
        yield pieces.popleft()


def raise_first(failed: Sequence[tuple[str, Exception]]) -> None:
    """The first failure that is one; a reader that went away is none."""
    for _, error in failed:
        if not isinstance(error, SinkClosed):
            raise error


def load(
    graph: str | Path = "file",
    *,
    sets: Sequence[str] = (),
    params: Mapping[str, str] | None = None,
    allow_import: bool = False,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """The graph at a path, or one that ships (`file`, `mic`), with its weights loaded.

    sets : overrides such as `source.file.path=talk.wav` or `decoder.delay=960ms`
    params : what the graph declares under `params`, such as `{"delay": "960ms", "weights":
        "voxtral-q4.gguf"}`

    Raises
    ------
    GraphError, WeightsMissing, and what reading weights may raise
    """
    return Run(load_graph(graph, sets=sets, params=params, allow_import=allow_import), on_metrics=on_metrics)


def transcribe(
    audio: str | Path | np.ndarray, rate_hz: int = 16_000, *, graph: str | Path = "file", **params: str
) -> Transcript:
    """The text of one recording: `print(transcribe("talk.flac", delay="960ms"))`."""
    with load(graph, params=params) as run:
        return run.transcribe(audio, rate_hz)
