"""An hour of virtual audio: neither memory nor the work of a tick grows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pipeline.ends.memory import MemorySource
from stages import Packet, Span

HOUR_S = 3600
BLOCK_S = 10
GROWTH_BYTES = (
    256 << 10
)  # the interpreter's own caches; a leak of one word per token would be 45 000 times its size


@pytest.mark.slow
def test_an_hour_of_audio_leaves_memory_and_work_per_tick_flat(tiny_run, restless):
    run = tiny_run()
    minute, block = restless(60.0), 0
    held = np.full(HOUR_S // BLOCK_S, 1 << 62)  # the least in each block: the source runs ahead, by moods

    def blocks():
        nonlocal block
        for block in range(len(held)):
            seconds = block * BLOCK_S % 60
            yield minute[seconds * 16_000 : (seconds + BLOCK_S) * 16_000]

    ears = Counting(lambda: held.__setitem__(block, min(held[block], tracemalloc.get_traced_memory()[0])))
    tracemalloc.start()
    failed = run.batch([(MemorySource(blocks(), 16_000), [(run.text_node, ears)])])
    tracemalloc.stop()
    assert not failed and ears.pieces > HOUR_S, "the model spoke to the end"
    early, late = held[6:90].min(), held[-90:].min()  # all but the first minute
    assert late - early < GROWTH_BYTES, f"memory grew from {early} to {late} bytes"


@pytest.mark.slow
def test_a_tick_after_an_hour_costs_what_it_cost_in_the_first_minutes(tiny_run):
    run = tiny_run()
    stage = run.plan.built["decoder"]
    young, old = stage.open(), stage.open()
    frame = np.zeros((1, 1, stage.takes.width), np.float32)
    for position in range(300):  # past the integers that the interpreter keeps made
        stage.step(young, Packet(frame, (Span(1280 * position, 1280 * position + 1280),)))
        stage.step(old, Packet(frame, (Span(1280 * position, 1280 * position + 1280),)))
    for ring in old.rings:
        ring.count[:] = 45_000 + ring.count % ring.capacity  # an hour on
    assert bytes_used(stage, young) == bytes_used(stage, old)


def bytes_used(stage, state) -> int:
    """The most that one step allocates: a measure of its work that does not depend on the machine's mood."""
    packet = Packet(np.zeros((1, 1, stage.takes.width), np.float32), (Span(0, 1280),))
    stage.step(state, packet)
    tracemalloc.start()
    stage.step(state, packet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Counting:
    """Counts pieces and forgets them; `look` is called when some come."""

    TAKES = "text"

    def __init__(self, look=lambda: None):
        self.pieces, self._look = 0, look

    def open(self, port): ...

    def write(self, packet, *, emitted_s=None):
        self.pieces += len(packet.data)
        self._look()

    def cut(self, at): ...

    def close(self): ...
