"""One speaker from open to close: a source and its intake, the stages between, the sinks.

The chain is an Rx stream whose head the engine pushes blocks into; the run of device stages is a seat in the
lanes. Whatever happens to a session stays in it: a failing stage ends it, a failing sink is let go while the
others go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pipeline.build import Plan
from pipeline.ends.protocols import Sink, Source
from pipeline.intake import Bell, Intake
from pipeline.lanes import Lanes, Seat
from pipeline.metrics import Metrics
from pipeline.operators import operator, root, shared, tap
from stages import Cut, Packet, Port, Span


class Session:
    """A running chain.

    source : opened here, and read on a thread of its own once `start` is called
    sinks : name of the node read from, and the sink
    """

    def __init__(
        self,
        plan: Plan,
        lanes: Sequence[Lanes],
        metrics: Metrics,
        bell: Bell,
        source: Source,
        sinks: Sequence[tuple[str, Sink]],
    ):
        self.source, self._sinks = source, [sink for _, sink in sinks]
        self.errors: list[Exception] = []
        self.done = False
        self._writers: list[Writer] = []
        self._seats: list[tuple[Lanes, Seat]] = []
        self._running = 1  # streams that have not ended: the head, one for every sink, one for every seat
        self._at = 0
        self._under_way: deque[tuple[float, float]] = deque()  # blocks: end on the sample clock, arrival; s
        self._ending = False
        port = source.open()
        self.rate = port.rate
        self.meter = metrics.session(source.label)
        self._front = metrics.stage(plan.graph.nodes[0].name if plan.graph.nodes else "source")
        self.intake = Intake(
            port.rate,
            bell,
            window_s=getattr(source, "window_s", 20.0),
            overrun=getattr(source, "overrun", "wait"),
        )
        self._head = root()
        try:
            self._connect(plan, lanes, metrics, port, sinks)
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Read the source on a thread of its own."""
        threading.Thread(target=self._read, name=f"source {self.source.label}", daemon=True).start()

    def pull(self) -> bool:
        """Push one waiting block through the chain; says whether there was anything to do."""
        if self.done or any(lanes.full(seat) for lanes, seat in self._seats):
            return False
        if (block := self.intake.take()) is not None:
            samples, arrived = block
            span = Span(self._at, self._at + len(samples))
            self._at = span.stop
            self.meter.audio_s = self._at / self.rate
            self._under_way.append((self.meter.audio_s, arrived))
            self._head.on_next(Packet(samples[None], (span,)))
            for writer in self._writers:
                writer.meter(samples, self.meter.lag_s)
            self.meter.queued_s = self.intake.peak / self.rate
            self.meter.dropped_s = (self.intake.dropped + getattr(self.source, "lost", 0)) / self.rate
            self._front.gauge({"queue_s": self.meter.queued_s, "dropped_s": self.meter.dropped_s})
            return True
        if self.intake.exhausted and not self._ending:
            self._ending = True
            if self.intake.error:
                self.errors.append(self.intake.error)
            self._head.on_completed()
            self.finished()
            return True
        return False

    def settle(self) -> None:
        """Note how long each block was under way that has left the lanes by now."""
        waiting_s = max((seat.backlog / lanes.rate for lanes, seat in self._seats), default=0.0)
        through_s, now = self._at / self.rate - waiting_s, time.monotonic()
        while self._under_way and self._under_way[0][0] <= through_s:
            self.meter.passed(now - self._under_way.popleft()[1])

    def stop(self) -> None:
        """Hear no more; what has been heard is still finished."""
        self.intake.end()  # first: what a source says about being closed midway is no complaint
        self.source.close()

    def close(self) -> None:
        """Let go of everything, at once."""
        self.stop()
        for lanes, seat in self._seats:
            lanes.leave(seat)
        for sink in self._sinks:
            self.quietly(sink.close)
        self.done = True

    def _read(self) -> None:
        try:
            for block in self.source.blocks():
                if not self.intake.put(np.ascontiguousarray(block, np.float32)):
                    break
        except Exception as error:
            self.intake.end(error)
        else:
            self.intake.end()
        finally:
            self.source.close()

    def _connect(
        self,
        plan: Plan,
        lanes: Sequence[Lanes],
        metrics: Metrics,
        port: Port,
        sinks: Sequence[tuple[str, Sink]],
    ) -> None:
        stages = plan.stages(port)
        streams: dict[str, Any] = {"source": self._head}
        last = {run[-1] for run in plan.runs}
        for node in plan.graph.nodes:
            if node.name not in plan.built:
                above = streams[node.upstream]
                streams[node.name] = shared(above.pipe(operator(stages[node.name], metrics.stage(node.name))))
            elif node.name in last:
                streams[node.name] = root()
        for upstream, sink in sinks:
            sink.open(port if upstream == "source" else stages[upstream].gives)
            writer = Writer(self, sink)
            self._writers.append(writer)
            self._running += 1
            tap(streams[upstream], writer.write, writer.finish, self.fail)
        for run, row in zip(plan.runs, lanes, strict=True):
            answers = streams[run[-1]]
            seat = row.seat(answers.on_next, partial(self._over, answers))
            self._seats.append((row, seat))
            self._running += 1
            tap(streams[plan.graph.node(run[0]).upstream], seat.push, seat.end, self.fail)

    def _over(self, answers: Any) -> None:
        """The last answer of a seat has been delivered."""
        answers.on_completed()
        self.finished()

    def fail(self, error: Exception) -> None:
        """A stage failed, which several branches may hear of; the session ends here."""
        if not self.done:
            self.errors.append(error)
            self.close()

    def lost(self, error: Exception) -> None:
        """A sink failed; while another still writes, the session goes on, else it hears no more."""
        self.errors.append(error)
        if all(writer.broken or writer.listens for writer in self._writers):
            self.stop()

    def finished(self) -> None:
        """One of the streams has ended."""
        self._running -= 1
        if not self._running:
            self.done = True
            self.source.close()

    def quietly(self, close: Callable[[], None]) -> None:
        try:
            close()
        except Exception as error:  # one more thing to report, nothing left to stop
            self.errors.append(error)

    def emitted_s(self) -> float:
        """Seconds of audio that had gone in by now."""
        return self._at / self.rate


def level_db(samples: np.ndarray) -> float:
    """Loudness of a block in dB of full scale, -120 for silence."""
    power = float(np.mean(np.square(samples))) if len(samples) else 0.0
    return max(-120.0, 10 * float(np.log10(power))) if power > 0 else -120.0


class Writer:
    """One sink at the end of a stream; its failures are its own."""

    def __init__(self, session: Session, sink: Sink):
        self._session, self._sink, self.broken = session, sink, False
        self._pieces = 0

    @property
    def listens(self) -> bool:
        """Only listens in: no reason to go on when every other sink has failed."""
        return getattr(self._sink, "listens", False)

    def write(self, item: Packet | Cut) -> None:
        if isinstance(item, Cut):
            self._try(self._sink.cut, item.at)
            return
        self._try(self._sink.write, item, emitted_s=self._session.emitted_s())
        if isinstance(item.data, list):
            self._pieces += len(item.data)
            self._session.meter.pieces = max(self._session.meter.pieces, self._pieces)

    def meter(self, samples: np.ndarray, lag_s: float) -> None:
        """How loud it is and how far behind, for sinks that show it."""
        if (show := getattr(self._sink, "meter", None)) is not None:
            self._try(show, level_db(samples), lag_s)

    def finish(self) -> None:
        self._session.quietly(self._sink.close)
        self._session.finished()

    def _try(self, act: Callable[..., None], *args: Any, **options: Any) -> None:
        if self.broken or self._session.done:  # a session that failed has closed its sinks
            return
        try:
            act(*args, **options)
        except Exception as error:
            self.broken = True
            self._session.lost(error)
