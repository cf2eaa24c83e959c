"""Many speakers, one step: the unbroken run of device stages, opened once for all lanes.

Every session has a seat: a mailbox in front of its lane. `step` takes what the mailboxes hold, makes one
packet of all lanes that have a whole quantum (None spans for the others), walks it through the device stages
and hands each lane its rows. How long a full lane waits for its neighbours is counted in samples of audio
queued behind it, never in seconds of a timer, so a run can be replayed; a lane in which a cut or the end is
queued waits for nobody, as nothing may come behind that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import Backend
from pipeline.errors import Busy
from pipeline.metrics import Metrics
from pipeline.operators import recut
from pipeline.wires import Fetch, Upload
from stages import Cut, Packet, Span, Stage
from stages.stage import Emission, Regroup, Row

BACKLOG_S = 0.5  # a lane that already has this much waiting is not asked for more


@dataclass(frozen=True, slots=True)
class End:
    """The last thing in a mailbox."""


class Seat:
    """One session's place in the batch: what waits for its lane, and where the answers go."""

    __slots__ = ("deliver", "finish", "lane", "mailbox", "regroup")

    def __init__(
        self, lane: int, regroup: Regroup, deliver: Callable[[Emission], None], finish: Callable[[], None]
    ):
        self.lane, self.regroup, self.deliver, self.finish = lane, regroup, deliver, finish
        self.mailbox: deque[Row | Cut | End] = deque()

    def push(self, item: Packet | Cut) -> None:
        if isinstance(item, Cut):
            self.regroup.drain()
            self.mailbox.append(item)
            return
        span = item.spans[0]
        assert span is not None, "a seat belongs to one session, which is never idle in its own stream"
        self.mailbox.extend(self.regroup.push(item.data[0], span))

    def end(self) -> None:
        self.regroup.drain()
        self.mailbox.append(End())

    @property
    def backlog(self) -> int:
        """Samples of audio that wait in front of the lane."""
        return sum(len(entry[1]) for entry in self.mailbox if isinstance(entry, tuple))

    @property
    def closing(self) -> bool:
        """A cut or the end waits behind the audio at the head."""
        return any(not isinstance(entry, tuple) for entry in self.mailbox)

    @property
    def ready(self) -> bool:
        """A whole quantum is at the head."""
        return bool(self.mailbox) and isinstance(self.mailbox[0], tuple)

    @property
    def head(self) -> int:
        """Items in the row at the head."""
        row = self.mailbox[0]
        assert isinstance(row, tuple), "the caller looked at `ready`"
        return len(row[0])

    def take(self, items: int) -> Row:
        """The next `items` items; the rest of a longer row stays at the head."""
        row = self.mailbox.popleft()
        assert isinstance(row, tuple), "the caller looked at `ready`"
        data, span = row
        if len(data) == items:
            return row
        middle = span.start + items * self.regroup.hop
        self.mailbox.appendleft((data[items:], Span(middle, span.stop)))
        return data[:items], Span(span.start, middle)


class Lanes:
    """The device stages of a graph and the seats in front of them.

    stages : name and stage of the run, in order
    count : lanes, fixed for the life of the run
    wait_ms : audio that may queue up behind a full lane before it leaves its neighbours behind; 0 never waits
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Stage[Any]]],
        backend: Backend,
        metrics: Metrics,
        *,
        count: int = 1,
        wait_ms: float = 0.0,
    ):
        self._stages = [stage for _, stage in stages]
        self._meters = [metrics.stage(name) for name, _ in stages]
        for stage, meter in zip(self._stages, self._meters, strict=True):
            meter.latency(stage.lookahead, stage.gives.rate)
        self._turn = getattr(backend, "turn", None) or nullcontext()  # other engines may share the backend
        with self._turn:
            self._states = [stage.open(count) for stage in self._stages]
        self._seats: list[Seat | None] = [None] * count
        self._upload, self._fetch = Upload(backend), Fetch(backend)
        self._soiled: set[int] = set()  # lanes that were left in the middle of something
        first = self._stages[0]
        self.rate = first.takes.rate
        self._quantum, self._hop = first.quantum, first.takes.hop
        self._patience = self._quantum * self._hop + round(wait_ms * self.rate / 1000)

    def seat(self, deliver: Callable[[Emission], None], finish: Callable[[], None]) -> Seat:
        """A free lane for a new session.

        Raises
        ------
        Busy   naming how many lanes there are
        """
        free = next((lane for lane, seat in enumerate(self._seats) if seat is None), None)
        if free is None:
            count = len(self._seats)
            raise Busy(f"all {count} lanes are taken; raise 'lanes: {{count: {count}}}' in the graph")
        if free in self._soiled:
            with self._turn:
                for stage, state in zip(self._stages, self._states, strict=True):
                    stage.flush(state, free)
            self._soiled.remove(free)
        seat = self._seats[free] = Seat(free, Regroup(self._quantum, self._hop), deliver, finish)
        return seat

    def leave(self, seat: Seat) -> None:
        """Give the lane back at once; what it still holds is dropped before the next session sits down.

        The stages are not touched, as they may be what has failed.
        """
        if self._seats[seat.lane] is seat:
            self._seats[seat.lane] = None
            self._soiled.add(seat.lane)
            seat.mailbox.clear()

    def full(self, seat: Seat) -> bool:
        """More audio would only wait behind what is there."""
        return seat.backlog > max(self._patience, BACKLOG_S * self.rate)

    def step(self) -> bool:
        """Do what can be done without waiting; says whether anything was."""
        moved = self._fetch.deliver()
        seats = [seat for seat in self._seats if seat is not None]
        for seat in seats:
            while seat.mailbox and not seat.ready:
                with self._turn:
                    self._mark(seat, seat.mailbox.popleft())
                moved = True
        ready = [seat for seat in seats if seat.ready]
        if ready:
            self._meters[0].gauge({"queue_s": max(seat.backlog for seat in ready) / self.rate})
        urgent = any(seat.closing or seat.backlog >= self._patience for seat in ready)
        if ready and (urgent or len(ready) == len(seats)):
            with self._turn:
                self._advance(ready)
            moved = True
        return self._fetch.deliver() or moved

    def pending(self) -> Any:
        """The device answer that is waited for, if any."""
        return self._fetch.pending()

    def _advance(self, ready: list[Seat]) -> None:
        items = min(seat.head for seat in ready)
        rows: dict[int, Row] = {seat.lane: seat.take(items) for seat in ready}
        sample = next(iter(rows.values()))[0]
        data = np.zeros((len(self._seats), *sample.shape), sample.dtype)
        for lane, (row, _) in rows.items():
            data[lane] = row
        spans = tuple(rows[lane][1] if lane in rows else None for lane in range(len(self._seats)))
        self._through(0, [Packet(self._upload(data), spans)])

    def _mark(self, seat: Seat, mark: Row | Cut | End) -> None:
        for place, (stage, state) in enumerate(zip(self._stages, self._states, strict=True)):
            with self._meters[place].timing():
                rest = stage.flush(state, seat.lane)
            self._through(place + 1, rest)
        if isinstance(mark, Cut):
            for stage in self._stages:
                mark = recut(mark, stage.takes, stage.gives)
            self._fetch.mark(lambda: seat.deliver(Cut(mark.at)))
        else:
            self._fetch.mark(lambda: self._finish(seat))

    def _finish(self, seat: Seat) -> None:
        if self._seats[seat.lane] is seat:
            self._seats[seat.lane] = None
        seat.finish()

    def _through(self, place: int, emissions: Sequence[Emission]) -> None:
        for emission in emissions:
            assert isinstance(emission, Packet), "device stages do not cut; only host stages see silence"
            if place == len(self._stages):
                self._scatter(emission)
                continue
            stage, state, meter = self._stages[place], self._states[place], self._meters[place]
            active = sum(span is not None for span in emission.spans)
            with meter.timing(emission.items * active):
                answers = stage.step(state, emission)
            self._through(place + 1, answers)

    def _scatter(self, packet: Packet) -> None:
        seats = [(seat, span) for seat, span in zip(self._seats, packet.spans, strict=True)]

        def deliver(data: np.ndarray) -> None:
            for seat, span in seats:
                if seat is not None and span is not None:
                    seat.deliver(Packet(data[seat.lane][None], (span,)))

        self._fetch.items(packet.data, deliver)
