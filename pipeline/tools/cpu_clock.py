"""Timing on a processor that others use too: candidates take turns, the best and the median of many count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """What many samples of one thing come to: seconds, or whatever they count."""

    best: float
    median: float
    samples: int

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.best * factor, self.median * factor, self.samples)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one comparison goes on: `rounds`, or until `seconds` have passed and `least` are done."""

    rounds: int = 300
    least: int = 5
    seconds: float = 6.0


def in_turns(acts: Mapping[str, Callable[[], float]], patience: Patience) -> dict[str, Spread]:
    """Every act once, then every act again, and so on; each says what it took. The first round is left out.

    Whatever slows the machine for a while slows them all, and the best of many is what it does when nothing
    does.
    """
    for act in acts.values():
        act()
    taken: dict[str, list[float]] = {name: [] for name in acts}
    began = time.perf_counter()
    for done in range(patience.rounds):
        if done >= patience.least and time.perf_counter() - began > patience.seconds:
            break
        for name, act in acts.items():
            taken[name].append(act())
    return {name: Spread(min(values), median(values), len(values)) for name, values in taken.items()}


def timed(act: Callable[[], object]) -> Callable[[], float]:
    """`act` as one that says how many seconds it took."""

    def spent() -> float:
        started = time.perf_counter()
        act()
        return time.perf_counter() - started

    return spent


def cycling(acts: list[Callable[[], float]]) -> Callable[[], float]:
    """The next of `acts` at every call: none finds in a cache what it left there."""
    at = -1

    def following() -> float:
        nonlocal at
        at = (at + 1) % len(acts)
        return acts[at]()

    return following
