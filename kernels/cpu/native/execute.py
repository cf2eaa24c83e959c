"""Plans: the leader walks through the records, and threads that share its work take parts of each.

The leader alone opens a record: it writes where the record is, then publishes a ticket word, the number of
the record in the life of the team above and the parts left to take below. Taking a part is one
compare-and-swap of that word, so a thread that was put aside anywhere, for any time, takes a part of what is
open now or nothing. No one ever waits for a thread that holds no part.
"""

from __future__ import annotations

from kernels.cpu import layout
from kernels.cpu.layout import CODE, JOINED, LEFT_BITS, LINE_BYTES, PARTS
from kernels.cpu.native.words import (
    atomic_add,
    atomic_load,
    atomic_store,
    atomic_swap,
    call,
    call_plain,
    exact,
    i64,
    pause,
    set_i64,
)

TICKETS, DONE, RECORD, RUNNING, LIMIT, YIELD, ASLEEP = (
    line * layout.LINE_BYTES
    for line in (
        layout.TICKETS, layout.DONE, layout.RECORD, layout.RUNNING, layout.LIMIT, layout.YIELD, layout.ASLEEP
    )
)  # fmt: skip
LEFT = (1 << LEFT_BITS) - 1
HEADER_BYTES, RECORD_BYTES = 8 * layout.HEADER_WORDS, 8 * layout.RECORD_WORDS
SPINS = 2000  # pauses, about 50 us: longer than parts take, shorter than a slice of the scheduler


@exact
def run(control, plan, count, helpers):
    """All records of a plan, alone or with helpers that have been told; the caller is the leader."""
    at = 0
    while at < count:
        record = plan + at * RECORD_BYTES
        joined = i64(record, JOINED)
        parts = i64(record, PARTS)
        for i in range(joined):
            parts += i64(record + (i + 1) * RECORD_BYTES, PARTS)
        if helpers > 0 and parts > 1:
            share(control, record, parts)
        else:
            for part in range(parts):
                run_part(record, part)
        at += 1 + joined
    if helpers > 0:
        atomic_store(control + RUNNING, 0)


@exact
def wake(control, helpers):
    """Say that a plan begins, for the first `helpers` helpers; bit i is 1 if helper i sleeps."""
    atomic_store(control + LIMIT, helpers)
    atomic_store(control + RUNNING, 1)
    sleepers = 0
    for i in range(helpers):
        sleepers |= atomic_load(control + ASLEEP + i * LINE_BYTES) << i
    return sleepers


@exact
def assist(control, index, linger):
    """A helper: takes parts while plans run; returns, to sleep, about `linger` pauses after the last one."""
    asleep = control + ASLEEP + index * LINE_BYTES
    atomic_store(asleep, 0)
    idle, spins = 0, 0
    while True:
        if wanted(control, index):
            idle = 0
            spins = 0 if take(control) else spins + 1
            if spins > SPINS:
                call_plain(i64(control + YIELD, 0))
        else:
            idle += 1
            if idle > linger:
                atomic_store(asleep, 1)
                if not wanted(control, index):  # who begins a plan from here on sees a sleeper, and wakes it
                    return
                atomic_store(asleep, 0)
        pause()


@exact
def wanted(control, index):
    """Whether a plan runs that helper `index` may work on."""
    return atomic_load(control + RUNNING) != 0 and index < atomic_load(control + LIMIT)


@exact
def share(control, record, parts):
    """One record, by everyone who comes."""
    set_i64(control + RECORD, 0, record)
    set_i64(control + RECORD, 1, parts)
    atomic_store(control + DONE, 0)
    number = (atomic_load(control + TICKETS) >> LEFT_BITS) + 1
    atomic_store(control + TICKETS, (number << LEFT_BITS) | parts)
    take(control)
    spins = 0
    while atomic_load(control + DONE) < parts:
        spins += 1
        if spins > SPINS:  # a thread that holds a part may be waiting for this very core
            call_plain(i64(control + YIELD, 0))
        pause()


@exact
def take(control):
    """Parts of the open record until none is left; how many were taken."""
    taken = 0
    while True:
        tickets = atomic_load(control + TICKETS)
        left = tickets & LEFT
        if left == 0:
            return taken
        if atomic_swap(control + TICKETS, tickets, tickets - 1):
            run_part(i64(control + RECORD, 0), i64(control + RECORD, 1) - left)
            atomic_add(control + DONE, 1)
            taken += 1


@exact
def run_part(record, part):
    """Part number `part` of a record and those that join it."""
    while part >= i64(record, PARTS):
        part -= i64(record, PARTS)
        record += RECORD_BYTES
    call(i64(record, CODE), record + HEADER_BYTES, part)


ENTRIES = ((run, 4), (wake, 2), (assist, 3))  # what Python calls, with the number of operands
