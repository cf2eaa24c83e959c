"""What `bench` reports: the figures of one run, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from pipeline.tools.floors import Floors
from pipeline.tools.machine import size


@dataclass(frozen=True, slots=True)
class Clip:
    """What is heard: `samples` at `rate` Hz, repeated to the length asked for."""

    name: str
    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def cut(self, seconds: float) -> Clip:
        """The same, repeated or cut to `seconds`."""
        return replace(self, samples=np.resize(self.samples, max(1, round(seconds * self.rate))))


@dataclass(frozen=True, slots=True)
class Live:
    """A run of 80 ms blocks, one at a time, as fast as they are worked off.

    opening_ms : the first block, with the padding before it
    ticks_ms : every further whole block, in order
    ending_ms : from the last sample to the last text
    stages_ms : per stage the median of what a tick spent in it
    words_ms : per word, from its end in the audio to its text: the model's delay, the wait for a whole
        block, and the tick
    pieces : of text that came out
    """

    seconds: float
    opening_ms: float
    ticks_ms: tuple[float, ...]
    ending_ms: float
    stages_ms: dict[str, float]
    words_ms: tuple[float, ...]
    pieces: int

    @property
    def rtf(self) -> float:
        """Seconds of work per second of audio, opening and ending included."""
        return (self.opening_ms + sum(self.ticks_ms) + self.ending_ms) / 1000 / self.seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything measured.

    offline_s : seconds of work for the whole clip, in blocks of `pass_s`
    lanes_ms : ticks by number of lanes; None where their windows do not fit the memory; empty if one was slow
    peak_bytes : the most memory the process held while one lane was heard, before the peers were measured
    """

    machine: dict[str, Any]
    backend: str
    weights: dict[str, Any]
    clip: Clip
    delay_ms: float | None
    load_s: float
    offline_s: float
    pass_s: float
    live: Live
    lanes_ms: dict[int, tuple[float, ...] | None]
    floors: Floors
    peak_bytes: int | None

    @property
    def offline_rtf(self) -> float:
        """Seconds of work per second of audio."""
        return self.offline_s / self.clip.seconds

    def as_json(self) -> dict[str, Any]:
        """One object; times in the unit their names end in, rates as seconds of work per second of audio."""
        live, floors, (threads, said) = self.live, self.floors, self.machine["threads"]
        return {
            "machine": {**self.machine, "threads": threads, "threads_from": said},
            "backend": self.backend,
            "weights": self.weights,
            "clip": {"name": self.clip.name, "seconds": round(self.clip.seconds, 3)},
            "load_s": round(self.load_s, 4),
            "peak_bytes": self.peak_bytes,
            "delay_ms": self.delay_ms,
            "offline": {"rtf": round(self.offline_rtf, 5), "block_s": self.pass_s},
            "live": {
                "rtf": round(live.rtf, 5),
                "tick_ms": spread(live.ticks_ms),
                "opening_ms": round(live.opening_ms, 3),
                "ending_ms": round(live.ending_ms, 3),
                "first_word_ms": round(live.words_ms[0], 1) if live.words_ms else None,
                "word_ms": round(median(live.words_ms), 1) if live.words_ms else None,
                "pieces": live.pieces,
            },
            "stages_ms": {name: round(ms, 4) for name, ms in live.stages_ms.items()},
            "lanes_tick_ms": {str(n): None if ms is None else spread(ms) for n, ms in self.lanes_ms.items()},
            "floors": {
                "read_gb_s": round(floors.read_bytes_s / 1e9, 2),
                "read_ms": round(floors.read_ms, 4),
                "numpy_ms": round(floors.numpy_ms, 4),
                "linear_ms": round(floors.linear_ms, 4),
            },
        }

    def markdown(self) -> str:
        """A table for BENCHMARKS.md: a line of the model's speed, and below it the lanes."""
        live, tick, weights = self.live, spread(self.live.ticks_ms), self.weights
        said = f"{median(live.words_ms):.0f} ms" if live.words_ms else "no word"
        peak = size(self.peak_bytes) if self.peak_bytes else "unknown"
        head = "| weights | backend | live | offline | tick, median and p95 | word to text | peak memory |"
        kinds = ", ".join(weights["kinds"])
        model = f"{weights['parameters'] / 1e6:.1f} M, {size(weights['bytes'])} of {kinds}"
        lines = [
            head, "|---" * (head.count("|") - 1) + "|",
            f"| {model} | {self.backend} | {live.rtf:.4f} | {self.offline_rtf:.4f} | "
            f"{tick['median']:.2f} ms, {tick['p95']:.2f} ms | {said} | {peak} |",
        ]  # fmt: skip
        if self.lanes_ms:
            lines += ["", "| lanes in one step | tick, median | for each speaker |", "|---|---|---|"]
        for lanes, ticks_ms in self.lanes_ms.items():
            one = spread(ticks_ms)["median"] if ticks_ms is not None else None
            times = "do not fit | –" if one is None else f"{one:.2f} ms | {one / lanes:.2f} ms"
            lines.append(f"| {lanes} | {times} |")
        return "\n".join(lines)

    def table(self) -> str:
        """For people: what was measured on what, then each figure with its floor below it."""
        return "\n".join([*self._about(), "", *self._speed(), "", *self._parts()])

    def _about(self) -> Iterator[str]:
        about, weights = self.machine, self.weights
        threads, said = about["threads"]
        kinds = ", ".join(weights["kinds"])
        gpu = f"{about['gpu']}, " if "gpu" in about else ""
        yield f"machine  {gpu}{about['cpu']}, {about['cores']} cores, {about['system']}, {about['python']}"
        yield f"numpy    {about['numpy']} with {about['blas']}, threads: {threads} ({said})"
        yield (
            f"weights  {weights['path']}: {weights['parameters'] / 1e6:.1f} M weights, "
            f"{size(weights['bytes'])} of {kinds}"
        )
        yield f"clip     {self.clip.name}, {self.clip.seconds:.1f} s"
        yield f"backend  {self.backend}"

    def _speed(self) -> Iterator[str]:
        live, floors, tick = self.live, self.floors, spread(self.live.ticks_ms)
        yield f"load         {self.load_s:8.2f} s"
        yield f"peak memory  {size(self.peak_bytes) if self.peak_bytes else 'unknown':>10}"
        yield f"offline      {self.offline_rtf:8.4f} of real time, in blocks of {self.pass_s:g} s"
        yield f"live         {live.rtf:8.4f} of real time, in blocks of 80 ms"
        yield f"tick         {tick['median']:8.2f} ms median, {tick['p95']:.2f} p95, {tick['max']:.2f} worst"
        yield f"  products   {floors.linear_ms:8.2f} ms for its matrix products alone, by {self.backend}"
        yield f"  peer       {floors.numpy_ms:8.2f} ms for the same products by bare NumPy, f32"
        yield f"  floor      {floors.read_ms:8.2f} ms to read the weights at {size(floors.read_bytes_s)}/s"
        yield f"opening      {live.opening_ms:8.1f} ms for the first block and the padding before it"
        yield f"ending       {live.ending_ms:8.1f} ms from the last sample to the last text"
        if live.words_ms:
            yield (
                f"word to text {median(live.words_ms):8.0f} ms median, {live.words_ms[0]:.0f} the first; "
                f"{self.delay_ms:.0f} of them are the model's delay"
            )

    def _parts(self) -> Iterator[str]:
        for name, ms in self.live.stages_ms.items():
            yield f"{name:18} {ms:8.3f} ms of a tick, median"
        for lanes, ticks_ms in self.lanes_ms.items():
            label = f"{lanes} lane{'s' if lanes > 1 else ''}"
            if ticks_ms is None:
                yield f"{label:18} do not fit the memory that is free"
            else:
                one = spread(ticks_ms)
                each = one["median"] / lanes
                yield f"{label:18} {one['median']:8.2f} ms median, {one['p95']:.2f} p95, {each:.2f} a speaker"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in milliseconds."""
    middle, most, worst = np.percentile(values, [50, 95, 100]) if values else (0.0, 0.0, 0.0)
    return {"median": round(float(middle), 4), "p95": round(float(most), 4), "max": round(float(worst), 4)}
