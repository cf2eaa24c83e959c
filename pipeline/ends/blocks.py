"""What every source does to audio: mix to mono, silence broken samples, cut blocks, release them on time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.clock import Time
from pipeline.errors import GraphError, SourceError

BLOCK_MS = (1.0, 60_000.0)  # shorter blocks cost more than they carry; longer ones are no stream
ASAP_BLOCK_MS = 10_000.0  # long passes suit a reader in a hurry
PACED_BLOCK_MS = 80.0  # one token of either model
LOUDEST = 1e6  # the square of a louder sample is no longer exact beside ordinary ones; such a file is broken


def speed(pace: str | float) -> float | None:
    """How much faster than speech: None for `asap`, 1.0 for `realtime`, 8.0 for `8x` or 8.

    Raises
    ------
    GraphError   if `pace` is none of these
    """
    text = str(pace).strip().lower()
    if text in ("asap", "realtime"):
        return None if text == "asap" else 1.0
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if 0.0 < factor < 1e6:
        return factor
    raise GraphError(f"pace is asap, realtime or a factor such as 8x, not {pace!r}")


def block_samples(block_ms: float | None, pace: str | float, rate_hz: int) -> int:
    """Samples in a block of `block_ms`; without one, as long as the pace suggests.

    Raises
    ------
    GraphError   if the block is shorter than 1 ms or longer than a minute
    """
    if block_ms is None:
        block_ms = ASAP_BLOCK_MS if speed(pace) is None else PACED_BLOCK_MS
    if not BLOCK_MS[0] <= block_ms <= BLOCK_MS[1]:
        raise GraphError(f"a block is 1 ms to 60 s long, not {block_ms!r} ms")
    return max(1, round(block_ms * rate_hz / 1000))


class Mixdown:
    """Frames to mono float32, broken samples to silence.

    `broken` counts samples that were not finite or louder than any recording.
    """

    def __init__(self, channel: int | None = None):
        self.channel = channel
        self.broken = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """[frames, channels] to [frames]: the mean, or one channel counted from 1."""
        frames = np.asarray(frames, np.float32)
        if self.channel is not None:
            frames = frames[:, self.channel - 1 : self.channel]
        good = np.abs(frames) <= LOUDEST  # false for NaN too
        if not good.all():
            self.broken += int(good.size - np.count_nonzero(good))
            frames = np.where(good, frames, np.float32(0))
        return frames[:, 0].copy() if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)

    def note(self) -> list[str]:
        """What to tell the user at the end, if anything."""
        said = f"{self.broken} broken samples (not finite, or absurdly loud) replaced by silence"
        return [said] if self.broken else []


def sized(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of `size`, the last one shorter.

    A `SourceError` of `chunks` is passed on only after all samples that came before it.
    """
    held: list[np.ndarray] = []
    have = 0
    fault: SourceError | None = None
    iterator = iter(chunks)
    while fault is None:
        try:
            chunk = next(iterator)
        except StopIteration:
            break
        except SourceError as error:
            fault = error
            break
        while have + len(chunk) >= size:
            head, chunk = np.split(chunk, [size - have])
            yield np.concatenate([*held, head])
            held, have = [], 0
        if len(chunk):
            held.append(chunk)
            have += len(chunk)
    if held:
        yield np.concatenate(held)
    if fault is not None:
        raise fault


def paced(
    blocks: Iterable[np.ndarray], rate_hz: int, pace: str | float, clock: Time, stop: threading.Event
) -> Iterator[np.ndarray]:
    """Release each block when a speaker `pace` times as fast would have finished it; end when `stop` is set.

    Moments are counted from the first request, so neither rounding nor a slow reader makes the pace drift.
    """
    factor = speed(pace)
    start = clock.now()
    samples = 0
    for block in blocks:
        samples += len(block)
        if factor is not None:
            clock.wait_until(start + samples / (rate_hz * factor), stop)
        if stop.is_set():
            return
        yield block
