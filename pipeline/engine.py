"""The pump: a generator that moves audio until it must wait, and yields what it waits for; two short drivers.

    for pending in engine.pump(): pending.wait()                                # a thread
    for pending in engine.pump(): await asyncio.to_thread(pending.wait)         # an event loop

One engine has one backend, one set of lanes and one thread; only `stop` and `close` may come from another.
Jobs beyond the number of lanes queue up and start as lanes fall free.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from kernels import Pending
from pipeline.build import Plan
from pipeline.intake import Bell
from pipeline.lanes import Lanes
from pipeline.metrics import Metrics
from pipeline.session import Session

MOVED = Pending(lambda: None)  # type: ignore[arg-type, return-value]  # nothing to wait for: a round was done
Job = tuple[Any, Sequence[tuple[str, Any]]]  # a source, and (node name, sink) pairs


class Engine:
    """Sessions over one plan.

    news : what `pump` yields when all that has arrived is worked off: more audio is waited for
    """

    def __init__(self, plan: Plan, metrics: Metrics | None = None):
        self.plan = plan
        self.metrics = metrics or Metrics()
        for node in plan.graph.nodes:
            self.metrics.stage(node.name)  # in the order of the chain
        self.sessions: list[Session] = []
        self.failed: list[tuple[str, Exception]] = []  # session name and error, in order
        self.notes: list[str] = []  # what sources wanted known, such as samples they had to replace
        self.bell = Bell()
        self.news = Pending(self.bell.wait, self.bell.rung)  # type: ignore[arg-type]
        self.opening = False  # a source is being opened, which may take as long as a writer keeps it waiting
        self._jobs: Iterator[Job] = iter(())
        self._stopping = False
        self._turn = threading.RLock()  # held while a round is under way, so that `close` comes between two
        self.width = max(1, plan.graph.lanes.count)
        self._lanes = [self._row(run) for run in plan.runs]

    def open(self, source: Any, sinks: Sequence[tuple[str, Any]], *, start: bool = True) -> Session:
        """A new session; its source is read on a thread unless the caller feeds the intake.

        Raises
        ------
        Busy, SourceError, SinkError, GraphError
        """
        self.opening = True
        try:
            session = Session(self.plan, self._lanes, self.metrics, self.bell, source, sinks)
        finally:
            self.opening = False
        self.sessions.append(session)
        if self._stopping:  # while the source was being opened
            session.stop()
        if start:
            session.start()
        return session

    def queue(self, jobs: Iterable[Job]) -> None:
        """Sessions to open one after another, as lanes fall free."""
        self._jobs = iter(jobs)

    def pump(self) -> Iterator[Pending]:
        """Work until all sessions and jobs are over; yields after every round what is left to wait for, if
        anything.
        """
        with self._turn:
            self._refill()
        while self.sessions:
            with self._turn:
                moved = self._round()
            if moved:
                yield MOVED
            elif self.sessions:
                device = (lanes.pending() for lanes in self._lanes)
                yield next((patient(pending) for pending in device if pending), self.news)

    def run(self) -> None:
        """Drive the pump on this thread to the end."""
        for pending in self.pump():
            pending.wait()

    async def run_async(self) -> None:
        """Drive the pump on this event loop; only the waiting leaves it. Cancelled, it closes the engine."""
        try:
            for pending in self.pump():
                if pending.ready():
                    pending.wait()
                    await asyncio.sleep(0)
                else:
                    await asyncio.to_thread(pending.wait)
        finally:
            self.close()

    def stop(self) -> None:
        """Hear no more, start nothing new; what has been heard is finished."""
        self._stopping = True
        for session in list(self.sessions):
            session.stop()
        self.bell.ring()

    def close(self) -> None:
        """Let go of every session at once, and open no more."""
        self._stopping = True
        with self._turn:
            for session in self.sessions:
                session.close()
            self._reap()
        self.bell.ring()

    def _row(self, run: tuple[str, ...]) -> Lanes:
        graph = self.plan.graph
        assert self.plan.backend is not None, "device stages have a backend"
        stages = [(name, self.plan.built[name]) for name in run]
        return Lanes(stages, self.plan.backend, self.metrics, count=self.width, wait_ms=graph.lanes.wait_ms)

    def _round(self) -> bool:
        moved = [session.pull() for session in self.sessions]
        try:
            moved += [lanes.step() for lanes in self._lanes]
        except Exception as error:  # what the lanes hold now is anybody's guess, for every speaker in them
            self._give_up(error)
        for session in self.sessions:
            session.settle()
        self._reap()
        return any(moved)

    def _give_up(self, error: Exception) -> None:
        """Every session ends with `error`, and so does what would have come after them."""
        self._stopping = True
        for session in self.sessions:
            session.fail(error)
        self._reap()
        self.failed += [(source.label, error) for source, _ in self._jobs]

    def _reap(self) -> None:
        for session in [s for s in self.sessions if s.done]:
            self.sessions.remove(session)
            self.failed += [(session.meter.name, error) for error in session.errors]
            self.notes += [f"{session.meter.name}: {note}" for note in getattr(session.source, "notes", ())]
            self._refill()

    def _refill(self) -> None:
        while not self._stopping and len(self.sessions) < self.width:
            job = next(self._jobs, None)
            if job is None:
                return
            try:
                self.open(*job)
            except Exception as error:  # one bad file among many: the others go on
                self.failed.append((job[0].label, error))
            except KeyboardInterrupt:  # it kept us waiting; what the others have heard is finished
                self.stop()


def patient(pending: Pending) -> Pending:
    """`pending` for a driver to wait on: what failed is not the driver's affair, and is met again where the
    answer is delivered.
    """

    def wait() -> None:
        with suppress(Exception):
            pending.wait()

    return Pending(wait, pending.ready)  # type: ignore[arg-type]
