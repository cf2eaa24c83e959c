"""Stages as Rx operators: the one place where Rx is spoken.

    samples.pipe(operator(Mel(pcm(16_000)))).subscribe(plot)

The stream may carry packets and cuts, as ours do, or bare arrays of items, which are then numbered from
sample 0. The end of the stream flushes the stage; a cut flushes it and travels on behind what the flush gave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import reactivex as rx
from reactivex import abc
from reactivex import operators as ops
from reactivex.subject import Subject

from pipeline.metrics import StageMeter
from stages import Cut, Packet, Port, Span, Stage
from stages.stage import Emission, Regroup

Operator = Callable[[rx.Observable[Any]], rx.Observable[Emission]]


def operator(stage: Stage[Any], meter: StageMeter | None = None) -> Operator:
    """`stage` as a function from stream to stream, with a state of its own for every subscription."""

    def apply(source: rx.Observable[Any]) -> rx.Observable[Emission]:
        def subscribe(
            observer: abc.ObserverBase[Emission], scheduler: abc.SchedulerBase | None = None
        ) -> Any:
            feed = Feed(stage, meter or StageMeter())

            def push(item: Any) -> None:
                try:
                    emissions = feed.push(item)
                except Exception as error:
                    observer.on_error(error)
                else:  # outside the try: what a subscriber raises is its own, and goes back to the source
                    for emission in emissions:
                        observer.on_next(emission)

            def finish() -> None:
                try:
                    emissions = feed.flush()
                except Exception as error:
                    observer.on_error(error)
                else:
                    for emission in emissions:
                        observer.on_next(emission)
                    observer.on_completed()

            return source.subscribe(push, observer.on_error, finish, scheduler=scheduler)

        return rx.create(subscribe)

    return apply


class Feed:
    """One stage, one state: takes packets, cuts or bare arrays and answers with what is now known."""

    __slots__ = ("_at", "_meter", "_regroup", "_stage", "_state")

    def __init__(self, stage: Stage[Any], meter: StageMeter):
        self._stage, self._meter = stage, meter
        meter.latency(stage.lookahead, stage.gives.rate)
        self._state = stage.open()
        self._regroup = Regroup(stage.quantum, stage.takes.hop)
        self._at = 0

    def push(self, item: Packet | Cut | np.ndarray) -> list[Emission]:
        if isinstance(item, Cut):
            return [*self.flush(), recut(item, self._stage.takes, self._stage.gives)]
        packet = item if isinstance(item, Packet) else self._numbered(np.asarray(item))
        if self._stage.quantum == 1:
            return self._step(packet)
        span = packet.spans[0]
        assert span is not None, "an operator has one lane, and it is never idle"
        rows = self._regroup.push(packet.data[0], span)
        return [emission for row, at in rows for emission in self._step(Packet(row[None], (at,)))]

    def flush(self) -> list[Emission]:
        self._regroup.drain()
        with self._meter.timing():
            return list(self._stage.flush(self._state))

    def _numbered(self, items: np.ndarray) -> Packet:
        start, self._at = self._at, self._at + len(items) * self._stage.takes.hop
        return Packet(items[None], (Span(start, self._at),))

    def _step(self, packet: Packet) -> list[Emission]:
        with self._meter.timing(packet.items):
            emissions = list(self._stage.step(self._state, packet))
        if gauges := getattr(self._stage, "gauges", None):
            self._meter.gauge(gauges(self._state))
        return emissions


def recut(cut: Cut, takes: Port, gives: Port) -> Cut:
    """The same cut on the clock of a stage's output; only `resample` changes the clock."""
    return cut if takes.rate == gives.rate else Cut(cut.at * gives.rate // takes.rate, cut.lane)


def tap(
    stream: rx.Observable[Any],
    deliver: Callable[[Any], None],
    finish: Callable[[], None],
    fail: Callable[[Exception], None],
) -> abc.DisposableBase:
    """Subscribe plain functions: what a sink or a lane's mailbox is to the stream."""
    return stream.subscribe(on_next=deliver, on_completed=finish, on_error=fail)


def shared(stream: rx.Observable[Emission]) -> rx.Observable[Emission]:
    """One run of the stages above, however many branches read it."""
    return stream.pipe(ops.share())


def root() -> Subject[Any]:
    """The head of a stream: push with `on_next`, end with `on_completed`."""
    return Subject()
