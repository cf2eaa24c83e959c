"""The library's face: `transcribe` a recording in one call, `load` a graph and iterate over its text.

print(transcribe("talk.flac"))
with load("mic") as graph:
    for text in graph: print(text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kernels import KernelError
from pipeline.build import Plan, build
from pipeline.catalog import make_sink, make_source
from pipeline.ends.file import FileSource
from pipeline.ends.memory import Memory, MemorySource, PushSource
from pipeline.engine import Engine, Job
from pipeline.errors import GraphError, PipelineError, SinkClosed, SourceError
from pipeline.graph import End, Graph, load_graph
from pipeline.metrics import Metrics
from pipeline.progress import Report
from stages import Packet, Port, StageError, Text

STANDARD_OUTPUT = "-"  # what a sink that takes no path, or is given none, writes to


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
    on_load : called with (bytes read, bytes in all) as the weights are read
    """

    def __init__(
        self,
        graph: Graph,
        *,
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
        on_load: Report = lambda done, total: None,
    ):
        self.graph = graph
        self.plan: Plan = build(graph, report=on_load)
        self._on_metrics = on_metrics
        self.notes: list[str] = []  # of the last run: what sources wanted known, such as samples replaced
        self._engines: list[Engine] = []  # runs that are under way; one for each thread that asked for one
        self._stopped = False  # a stop that came before there was an engine

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Text]:
        """Run from the graph's own source, yielding every piece of text as it comes.

        Sinks that write files write them; standard output is left to the loop.
        """
        source, heard = self._source(), deque[Text]()
        files = [end for end in self.graph.sinks if end.options.get("path", "-") != STANDARD_OUTPUT]
        sinks = [*self._sinks(files), *self._listeners(heard.append)]
        return drained(heard, self._rounds(source, sinks))

    def transcribe(self, audio: str | Path | BinaryIO | np.ndarray, rate_hz: int = 16_000) -> Transcript:
        """The text of a recording: a path, an open binary stream, or samples [n] or [n, channels] at
        `rate_hz`. The graph's own ends are left alone.

        Raises
        ------
        SourceError   it is none of these, or cannot be read to its end
        KernelError   the device failed
        The `transcript` of the error is what was heard before.
        """
        source, kept = source_of(audio, rate_hz), Memory()
        try:
            for _ in self._rounds(source, [(self.text_node, kept)]):
                pass
        except (PipelineError, StageError, KernelError) as error:
            error.transcript = kept.text  # type: ignore[union-attr]
            raise
        return Transcript(kept.text, tuple(kept.pieces), kept.port.rate if kept.port else rate_hz)

    async def stream(self, audio: AsyncIterable[np.ndarray], rate_hz: int = 16_000) -> AsyncIterator[Text]:
        """Text of blocks that arrive asynchronously, each [n] or [n, channels].

        The work is done on a thread of its own, so the event loop stays free and any number of streams may be
        under way. A stream that is closed early ends its work.
        """
        source, heard = PushSource(rate_hz), asyncio.Queue[Text | Exception | None]()
        loop, left = asyncio.get_running_loop(), threading.Event()

        def tell(news: Text | Exception | None) -> None:
            if not left.is_set():  # else the loop may be gone, too
                loop.call_soon_threadsafe(heard.put_nowait, news)

        def work() -> None:
            try:
                with closing(self._rounds(source, self._listeners(tell))) as rounds:
                    for _ in rounds:
                        if left.is_set():
                            return
                tell(None)
            except Exception as error:
                tell(error)

        async def feed() -> None:
            try:
                async for block in audio:
                    if not await asyncio.to_thread(source.push, block):
                        break
            finally:
                source.end()

        feeding = asyncio.create_task(feed())
        threading.Thread(target=work, name="stream", daemon=True).start()
        try:
            while (news := await heard.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
            if feeding.done():  # it is not where the run was stopped
                await feeding
        finally:
            left.set()
            source.close()
            feeding.cancel()

    def run(self, on_round: Callable[[float, float | None], None] = lambda heard_s, total_s: None) -> None:
        """Run from the graph's own source to its own sinks, to the end.

        `on_round` is called whenever something has moved, with the seconds heard so far and in all, or None
        where that is not known.
        """
        source = self._source()
        for heard_s in self._rounds(source, self._sinks(self.graph.sinks)):
            on_round(heard_s, source.duration_s)

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
        """Hear no more; what has been heard is still finished and delivered. With no run under way, the next
        one hears nothing.

        Returns at once, from any thread and from a signal handler: the interrupted code may hold a lock that
        stopping needs, so that happens on a thread of its own.
        """
        self._stopped = True
        for engine in list(self._engines):
            threading.Thread(target=engine.stop, name="stop").start()

    @property
    def opening(self) -> bool:
        """Whether a source is being opened: with a pipe that nobody writes to, `stop` would wait for it."""
        return any(engine.opening for engine in list(self._engines))

    def close(self) -> None:
        """Let go of all runs that are under way, at once."""
        for engine in list(self._engines):
            engine.close()

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

    def _source(self) -> Any:
        if self.graph.source is None:
            raise GraphError(
                f"{self.graph.name}: has no source to run from; use a graph with one, or `transcribe`"
            )
        return make_source(self.graph.source)

    def _sinks(self, ends: Iterable[End]) -> list[tuple[str, Any]]:
        return [(end.upstream, make_sink(end)) for end in ends]

    def _listeners(self, deliver: Callable[[Text], object]) -> list[tuple[str, Pieces]]:
        return [(node, Pieces(deliver)) for node in self.plan.text_nodes]

    def _rounds(self, source: Any, sinks: Sequence[tuple[str, Any]]) -> Generator[float, None, None]:
        """One session from end to end; yields the seconds heard, whenever something may have been said."""
        with self._running() as engine:
            meter = engine.open(source, sinks).meter
            for pending in engine.pump():
                yield meter.audio_s
                pending.wait()
            yield meter.audio_s
        raise_first(engine.failed)

    @contextmanager
    def _running(self) -> Iterator[Engine]:
        """An engine for one run, which can be stopped and closed from outside while it lasts."""
        metrics = Metrics()
        engine = Engine(self.plan, metrics)
        self._engines.append(engine)
        if self._stopped:
            engine.stop()
        try:
            yield engine
        finally:
            engine.close()
            self._engines.remove(engine)
            self._stopped = self._stopped and bool(self._engines)
            self.notes = engine.notes
            if self._on_metrics:
                self._on_metrics(metrics.report())


def source_of(audio: str | Path | BinaryIO | np.ndarray, rate_hz: int) -> MemorySource | FileSource:
    if isinstance(audio, np.ndarray):
        return MemorySource(audio, rate_hz)
    if isinstance(audio, str | Path) or hasattr(audio, "read"):
        return FileSource(audio)
    found = type(audio).__name__
    raise SourceError(f"audio is a path, an open binary stream or a NumPy array of samples, found {found}")


def drained(heard: deque[Text], rounds: Generator[float, None, None]) -> Iterator[Text]:
    """What `rounds` add to `heard`, as soon as it is there."""
    with closing(rounds):
        for _ in rounds:
            while heard:
                yield heard.popleft()


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

    sets : overrides such as `source.file.path=talk.wav` or `source.file.pace=realtime`
    params : what the graph declares under `params`, such as `{"delay": "960ms", "weights":
        "voxtral-q4.gguf"}`

    Raises
    ------
    GraphError, WeightsMissing, and what reading weights may raise
    """
    return Run(load_graph(graph, sets=sets, params=params, allow_import=allow_import), on_metrics=on_metrics)


def transcribe(
    audio: str | Path | BinaryIO | np.ndarray, rate_hz: int = 16_000, *, graph: str | Path = "file",
    **params: str,
) -> Transcript:
    """The text of one recording: `print(transcribe("talk.flac", delay="960ms"))`."""
    with load(graph, params=params) as run:
        return run.transcribe(audio, rate_hz)
