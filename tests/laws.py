"""The seven laws every stage obeys, ours or a user's, written once.

A `Case` says how to build a stage and what to feed it; a law is a function of a case and of what was drawn.
A new stage is one row in `tests/stages/test_laws.py`, or keeps the laws in a test of its own:

    @given(st.data())
    def test_my_stage_keeps_the_laws(data):
        for law in laws.LAWS:
            law(Case("mine", lambda: Mine(pcm(16_000)), speech()), data.draw)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from stages.packet import Cut, Packet, Span
from stages.stage import Regroup, Stage
from tests.compare import assert_close, assert_same
from tests.fingerprint import changes, fingerprint
from tests.strategies import cuts, lanes

Draw = Callable[[SearchStrategy[Any]], Any]
Said = tuple[Span, Any] | Cut  # one lane's output: items [item, ...] or a list of texts
MOST_LANES = 5  # not a power of two


@dataclass(frozen=True, repr=False)
class Case:
    """A stage on trial.

    make : builds it; once, because a stage is shared
    inputs : one stream's items [item, ...]
    atol : how far floats may differ between slicings, and between lanes together and alone; 0: not a bit
    resume_atol : the same between a copied state and the original
    fixed_length : the output's length depends on the input's length alone; not so where silence is withheld
    put, get : onto the stage's device and back; `get` copies, because device packets are borrowed
    lane_of : of a state, what only that lane may change; its outputs and scratch do not count
    still : of a stage, what a run must leave as it is
    twin : of a state, one like it that shares nothing
    """

    name: str
    make: Callable[[], Stage[Any]]
    inputs: SearchStrategy[np.ndarray]
    atol: float = 0.0
    resume_atol: float = 0.0
    fixed_length: bool = True
    put: Callable[[np.ndarray], Any] = np.asarray
    get: Callable[[Any], np.ndarray] = np.array
    lane_of: Callable[[Any, int], Any] = lambda state, lane: state[lane]
    still: Callable[[Any], Any] = lambda stage: stage
    twin: Callable[[Any], Any] = copy.deepcopy

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @cached_property
    def stage(self) -> Stage[Any]:
        return self.make()


class Play:
    """A stage at work on some lanes, and what each of them has said so far."""

    def __init__(self, case: Case, lanes: int = 1, start: int = 0):
        self.case, self.stage = case, case.stage
        self.state = self.stage.open(lanes)
        self.said: list[list[Said]] = [[] for _ in range(lanes)]
        self.at = [start] * lanes

    def step(self, rows: dict[int, np.ndarray]) -> None:
        """One step in which the lanes of `rows` take part with equally many items; the others carry noise."""
        some, hop = next(iter(rows.values())), self.stage.takes.hop
        data = np.ones((len(self.at), *some.shape), some.dtype)
        spans: list[Span | None] = [None] * len(self.at)
        for lane, items in rows.items():
            data[lane], spans[lane] = items, Span(self.at[lane], self.at[lane] + len(items) * hop)
            self.at[lane] += len(items) * hop
        self._hear(self.stage.step(self.state, Packet(self.case.put(data), tuple(spans))))

    def feed(self, items: np.ndarray, at: Sequence[int] = ()) -> None:
        """Lane 0 hears `items` sliced at `at`, in whole quanta; a remainder is dropped."""
        regroup = Regroup(self.stage.quantum, self.stage.takes.hop)
        for piece in np.split(items, at):
            for whole, _ in regroup.push(piece, Span(0, 0)) if len(piece) else []:
                self.step({0: whole})

    def flush(self, lane: int = 0) -> list[Said]:
        """End the lane's stream, and hand over all it has said."""
        self._hear(self.stage.flush(self.state, lane))
        said, self.said[lane] = self.said[lane], []
        return said

    def _hear(self, emissions: Sequence[Packet | Cut]) -> None:
        for out in emissions:
            if isinstance(out, Cut):
                self.said[out.lane].append(replace(out, lane=0))
                continue
            data = [out.data] if isinstance(out.data, list) else self.case.get(out.data)
            for lane, span in enumerate(out.spans):
                if span is not None:
                    self.said[lane].append((span, data[0 if isinstance(out.data, list) else lane]))


def play(case: Case, items: np.ndarray, at: Sequence[int] = (), start: int = 0) -> list[Said]:
    """The whole life of one stream."""
    player = Play(case, start=start)
    player.feed(items, at)
    return player.flush()


def chunking(case: Case, draw: Draw) -> None:
    """Any slicing gives the same output."""
    items = draw(case.inputs)
    sliced = play(case, items, draw(cuts(len(items))))
    assert_agree(sliced, play(case, items), case.atol, f"{case.name}, sliced")


def clock(case: Case, draw: Draw) -> None:
    """Between cuts, spans touch and are whole hops; their total depends on the input's length alone."""
    items, second = draw(case.inputs), case.stage.takes.rate
    said = play(case, items, draw(cuts(len(items))))
    _assert_touching(case, said)
    later = play(case, items, start=second)
    moved = [_moved(s, case.stage.gives.rate) for s in play(case, items)]
    assert_agree(later, moved, case.atol, f"{case.name}, a second later")
    if case.fixed_length:
        blank = play(case, np.zeros_like(items))
        assert _spans(said) == _spans(blank), f"{case.name}: spans {_spans(said)}, of silence {_spans(blank)}"


def causality(case: Case, draw: Draw) -> None:
    """Output up to sample s ignores input after s + lookahead."""
    items, other = draw(case.inputs), draw(case.inputs)
    at = draw(cuts(len(items)))
    same = (draw(cuts(len(items), most=1)) or [len(items)])[0]
    same -= same % case.stage.quantum  # an unfinished quantum at the end of a stream is never heard
    if not same or case.stage.lookahead < 0:  # no common past, or no promise
        return
    changed = np.concatenate([items[:same], other])
    takes, gives = case.stage.takes, case.stage.gives
    known = same * takes.hop * gives.rate // takes.rate - case.stage.lookahead
    first, second = (Play(case) for _ in range(2))
    first.feed(items, at)
    second.feed(changed, [a for a in at if a < len(changed)])
    expected, actual = (_until(p.flush(), known, gives.hop) for p in (first, second))
    assert_agree(actual, expected, case.atol, f"{case.name}, up to {known}")


def flush(case: Case, draw: Draw) -> None:
    """A flushed lane is as good as new, and has nothing more to say."""
    before, items = draw(case.inputs), draw(case.inputs)
    at = draw(cuts(len(items)))
    player = Play(case)
    player.feed(before, draw(cuts(len(before))))
    player.flush()
    assert player.flush() == [], f"{case.name}: a second flush had something to say"
    player.at = [0]
    player.feed(items, at)
    assert_agree(player.flush(), play(case, items, at), 0.0, f"{case.name}, after a flush")


def lanes_apart(case: Case, draw: Draw) -> None:
    """B lanes together equal B alone; an idle or foreign lane is bitwise untouched."""
    count = draw(st.integers(1, MOST_LANES))
    streams = [draw(case.inputs) for _ in range(count)]
    quantum = case.stage.quantum
    longest = max(1, max(len(s) for s in streams) // quantum)
    schedule = draw(lanes(count, longest))
    together, alone = Play(case, count), [Play(case) for _ in range(count)]
    for n, (quanta, active) in enumerate(schedule):
        rows = {k: streams[k][: quanta * quantum] for k in active if len(streams[k]) >= quanta * quantum}
        if rows:
            _untouched(case, together, set(range(count)) - set(rows), lambda rows=rows: together.step(rows))
        for k, row in rows.items():
            alone[k].step({0: row})
            streams[k] = streams[k][len(row) :]
        if n == len(schedule) // 2:
            _flush_both(case, together, alone, lane=0)
    for k in range(count):
        _flush_both(case, together, alone, k)


def stillness(case: Case, draw: Draw) -> None:
    """A run leaves the stage as it was, and neither clock, file, socket nor chance has a say in it."""
    items = draw(case.inputs)
    at, before = draw(cuts(len(items))), fingerprint(case.still(case.stage))
    said = play(case, items, at)
    with _sealed(case.stage):
        again = play(case, items, at)
    assert_agree(again, said, 0.0, f"{case.name}, once more")
    diff = changes(before, fingerprint(case.still(case.stage)))
    assert not diff, f"{case.name}: a run changed {diff}"


def resume(case: Case, draw: Draw) -> None:
    """A state copied midway gives the same ending, and the original does not notice."""
    items = draw(case.inputs)
    at = draw(cuts(len(items)))
    pieces = [p for p in np.split(items, at) if len(p) and not len(p) % case.stage.quantum]
    original = Play(case)
    for piece in pieces[: len(pieces) // 2]:
        original.step({0: piece})
    twin = Play(case)
    twin.state, twin.said = case.twin(original.state), [list(original.said[0])]
    twin.at = list(original.at)
    for player in (twin, original):
        for piece in pieces[len(pieces) // 2 :]:
            player.step({0: piece})
    ending = original.flush()
    assert_agree(twin.flush(), ending, case.resume_atol, f"{case.name}, resumed from a copy")
    undisturbed = Play(case)
    for piece in pieces:
        undisturbed.step({0: piece})
    assert_agree(ending, undisturbed.flush(), 0.0, f"{case.name}, copied from")


LAWS = (chunking, clock, causality, flush, lanes_apart, stillness, resume)


def assert_agree(actual: list[Said], expected: list[Said], atol: float, what: str) -> None:
    """The same spans and cuts to the sample, the same items within `atol`; packing is nobody's business."""
    got, want = _merged(actual), _merged(expected)
    assert _spans(got) == _spans(want), f"{what}: spans {_spans(got)}, expected {_spans(want)}"
    for a, b in zip(got, want, strict=True):
        if isinstance(a, Cut) or isinstance(b, Cut):
            continue
        if isinstance(a[1], list):
            assert a[1] == b[1], f"{what}: {a[1]!r}, expected {b[1]!r}"
        elif atol and a[1].dtype.kind == "f":
            assert_close(a[1], b[1], rtol=0.0, atol=atol, what=what)
        else:
            assert_same(a[1], b[1], what=what)


def _merged(said: list[Said]) -> list[Said]:
    """Packets that touch become one."""
    out: list[Said] = []
    for part in said:
        last = out[-1] if out else None
        if isinstance(part, Cut) or last is None or isinstance(last, Cut) or last[0].stop != part[0].start:
            out.append(part)
            continue
        items = last[1] + part[1] if isinstance(part[1], list) else np.concatenate([last[1], part[1]])
        out[-1] = Span(last[0].start, part[0].stop), items
    return out


def _spans(said: list[Said]) -> list[Span | Cut]:
    return [s if isinstance(s, Cut) else s[0] for s in _merged(said)]


def _moved(part: Said, by: int) -> Said:
    if isinstance(part, Cut):
        return replace(part, at=part.at + by)
    items = part[1]
    if isinstance(items, list):
        items = [replace(t, span=Span(t.span.start + by, t.span.stop + by)) for t in items]
    return Span(part[0].start + by, part[0].stop + by), items


def _until(said: list[Said], sample: int, hop: int) -> list[Said]:
    """Whole items that end at `sample` or before; a list of texts counts as one."""
    out: list[Said] = []
    for part in said:
        if isinstance(part, Cut):
            out += [part] if part.at <= sample else []
        elif isinstance(part[1], list):
            out += [part] if part[0].start < sample >= part[0].stop else []  # an empty span is the flush's
        elif (items := min(len(part[1]), (sample - part[0].start) // hop)) > 0:
            out.append((Span(part[0].start, part[0].start + items * hop), part[1][:items]))
    return out


def _assert_touching(case: Case, said: list[Said]) -> None:
    hop, at = case.stage.gives.hop, None
    for part in said:
        if isinstance(part, Cut):
            assert at is None or part.at >= at, f"{case.name}: a cut at {part.at} behind sample {at}"
            at = None
            continue
        span, items = part
        assert at in (None, span.start), f"{case.name}: {span} does not touch {at}"
        whole = isinstance(items, list) or len(span) == len(items) * hop
        assert whole, f"{case.name}: {span} for {len(items)} items of {hop}"
        at = span.stop


def _untouched(case: Case, player: Play, others: set[int], act: Callable[[], Any]) -> Any:
    before = {k: fingerprint(case.lane_of(player.state, k)) for k in others}
    result = act()
    for k in others:
        diff = changes(before[k], fingerprint(case.lane_of(player.state, k)))
        assert not diff, f"{case.name}: idle lane {k} changed in {diff}"
    return result


def _flush_both(case: Case, together: Play, alone: list[Play], lane: int) -> None:
    said = _untouched(case, together, set(range(len(alone))) - {lane}, lambda: together.flush(lane))
    assert_agree(said, alone[lane].flush(), case.atol, f"{case.name}, lane {lane} of {len(alone)}")
    together.at[lane] = alone[lane].at[0] = 0


class _sealed:
    """While it lasts, the stage refuses assignments, and files, sockets, clocks and chance refuse service."""

    FORBIDDEN = (
        "builtins.open", "socket.socket", "time.time", "time.monotonic", "time.perf_counter", "time.sleep",
        "random.random", "os.urandom", "numpy.random.default_rng",
    )  # fmt: skip

    def __init__(self, stage: Any):
        self.stage, self.kind = stage, type(stage)
        self.patches = [
            mock.patch(name, side_effect=AssertionError(f"a stage used {name}")) for name in self.FORBIDDEN
        ]

    def __enter__(self) -> None:
        def refuse(_: Any, name: str, value: Any) -> None:
            raise AssertionError(f"a stage set its attribute {name!r} during a run")

        sealed = type(self.kind.__name__, (self.kind,), {"__slots__": (), "__setattr__": refuse})
        object.__setattr__(self.stage, "__class__", sealed)
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.stop()
        object.__setattr__(self.stage, "__class__", self.kind)
