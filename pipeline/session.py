"""One speaker from open to close: a source and its intake, the stages between, the sinks.

The chain is an Rx stream whose head the engine pushes blocks into; the run of device stages is a seat in the
lanes. Whatever happens to a session stays in it: a failing stage ends it, a failing sink is let go while the
others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.build import Plan
from pipeline.intake import Bell, Intake
from pipeline.lanes import Lanes, Seat
from pipeline.metrics import Metrics
from pipeline.operators import operator, root, shared, tap
from stages import Cut, Packet, Port, Span

BACKLOG_S = 0.5  # a session whose lane already has this much waiting is not asked for more


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
        source: Any,
        sinks: Sequence[tuple[str, Any]],
    ):
        self.source, self._sinks = source, [sink for _, sink in sinks]
        self.errors: list[Exception] = []
        self.done = False
        self._writers: list[Writer] = []
        self._finished = 0
        self._seats: list[tuple[Lanes, Seat]] = []
        self._at = 0
        self._ending = False
        port = source.open()
        self.rate = port.rate
        self.meter = metrics.session(source.label)
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
        if self.done or any(seat.backlog > BACKLOG_S * self.rate for _, seat in self._seats):
            return False
        if (block := self.intake.take()) is not None:
            samples, arrived = block
            span = Span(self._at, self._at + len(samples))
            self._at = span.stop
            self.meter.audio_s = self._at / self.rate
            self._head.on_next(Packet(samples[None], (span,)))
            self.meter.passed(time.monotonic() - arrived)
            self._show(samples)
            self.meter.queued_s = self.intake.peak / self.rate
            self.meter.dropped_s = (self.intake.dropped + getattr(self.source, "lost", 0)) / self.rate
            return True
        if self.intake.exhausted and not self._ending:
            self._ending = True
            if self.intake.error:
                self.errors.append(self.intake.error)
            self._head.on_completed()
            return True
        return False

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
        sinks: Sequence[tuple[str, Any]],
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
            tap(streams[upstream], writer.write, writer.finish, self._fail)
        for run, row in zip(plan.runs, lanes, strict=True):
            answers = streams[run[-1]]
            seat = row.seat(answers.on_next, answers.on_completed)
            self._seats.append((row, seat))
            tap(streams[plan.graph.node(run[0]).upstream], seat.push, seat.end, self._fail)

    def _fail(self, error: Exception) -> None:
        self.errors.append(error)
        self.close()

    def lost(self, error: Exception) -> None:
        """A sink failed; while another still writes, the session goes on, else it hears no more."""
        self.errors.append(error)
        if all(writer.broken or writer.listens for writer in self._writers):
            self.stop()

    def finished(self) -> None:
        """A sink has had everything."""
        self._finished += 1
        if self._finished == len(self._writers):
            self.done = True
            self.source.close()

    def quietly(self, close: Any) -> None:
        try:
            close()
        except Exception as error:  # one more thing to report, nothing left to stop
            self.errors.append(error)

    def _show(self, samples: np.ndarray) -> None:
        for sink in self._sinks:
            if meter := getattr(sink, "meter", None):
                meter(level_db(samples), self.meter.lag_s)

    def emitted_s(self) -> float:
        """Seconds of audio that had gone in by now."""
        return self._at / self.rate


def level_db(samples: np.ndarray) -> float:
    """Loudness of a block in dB of full scale, -120 for silence."""
    power = float(np.mean(np.square(samples))) if len(samples) else 0.0
    return max(-120.0, 10 * float(np.log10(power))) if power > 0 else -120.0


class Writer:
    """One sink at the end of a stream; its failures are its own."""

    def __init__(self, session: Session, sink: Any):
        self._session, self._sink, self.broken = session, sink, False
        self._pieces = 0

    @property
    def listens(self) -> bool:
        """Only listens in: no reason to go on when every other sink has failed."""
        return getattr(self._sink, "listens", False)

    def write(self, item: Packet | Cut) -> None:
        if self.broken:
            return
        try:
            if isinstance(item, Cut):
                self._sink.cut(item.at)
                return
            self._sink.write(item, emitted_s=self._session.emitted_s())
            if isinstance(item.data, list):
                self._pieces += len(item.data)
                self._session.meter.pieces = max(self._session.meter.pieces, self._pieces)
        except Exception as error:
            self.broken = True
            self._session.lost(error)

    def finish(self) -> None:
        self._session.quietly(self._sink.close)
        self._session.finished()
