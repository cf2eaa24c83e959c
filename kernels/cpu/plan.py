"""Records of work: what a step does, written down as words for native/execute.py.

    a record   kernel, parts, how many later records join it, 13 operands: 16 words of 64 bits
    a plan     records in order, each begun when the one before has ended

A part is what one thread does at a time. Joined records are worked on together: none reads what another
writes.
"""

from __future__ import annotations

from array import array
from ctypes import addressof, c_char
from typing import Any, NamedTuple

import numpy as np

from kernels.cpu.layout import JOINED, LEFT_BITS, OPERANDS, RECORD_WORDS
from kernels.cpu.machine import Library
from kernels.errors import KernelError, ShapeError

MOST_PARTS = 1 << LEFT_BITS - 3  # of a record, with a few that join it
PADDING = (0,) * OPERANDS
F32, I32 = np.dtype(np.float32), np.dtype(np.int32)


class Scratch:
    """Named work memory that grows and is never given back: a recorded plan points into it.

    Content lasts until the next use of the name. Sizes are powers of two, so all that was outgrown together
    is smaller than what is in use.
    """

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def take(self, name: str, nbytes: int) -> np.ndarray:
        held = self._held.get(name)
        if held is None or held.nbytes < nbytes:
            held = self._held[name] = np.zeros(1 << max(8, (nbytes - 1).bit_length()), np.uint8)
        return held


class Plan(NamedTuple):
    """Records at an address.

    cost : about how many bytes they read, a measure of their time
    held : where they stand, and what they point at
    """

    address: int
    records: int
    cost: int
    held: tuple[Any, ...]


class Steps:
    """Records under way: one op's, or everything a capture records.

    library : the kernels
    scratch : work memory
    exact : take activations as f32 also where weights are blocks
    """

    def __init__(self, library: Library, scratch: Scratch, exact: bool):
        self.library, self.scratch, self.exact = library, scratch, exact
        self.held: list[Any] = []
        self.cost = 0
        self._words = array("q")
        self._own: dict[Any, np.ndarray] = {}

    def add(self, kernel: str, parts: int, *operands: int, cost: int = 0) -> None:
        """One more record, unless there is nothing to do."""
        if parts > MOST_PARTS:
            raise ShapeError(f"{kernel}: {parts} parts, but a step has at most {MOST_PARTS}; cut the input")
        if parts == 0:
            return
        self._words.extend((self.library.codes[kernel], parts, 0, *operands, *PADDING[len(operands) :]))
        self.cost += cost

    @property
    def records(self) -> int:
        """How many there are so far."""
        return len(self._words) // RECORD_WORDS

    def join(self, since: int) -> None:
        """Let the records from number `since` on (from 0) run together."""
        if since < self.records - 1:
            self._words[since * RECORD_WORDS + JOINED] = self.records - 1 - since

    def plan(self) -> Plan:
        """What has been written down, ready to run; nothing can be added then."""
        return Plan(self._words.buffer_info()[0], self.records, self.cost, (self._words, *self.held))

    def room(self, name: str, nbytes: int) -> int:
        """Address of work memory that other plans use as well; it lives as long as this one."""
        memory = self.scratch.take(name, nbytes)
        self.held.append(memory)
        return address_of(memory)

    def own(self, key: Any, nbytes: int) -> int:
        """Address of memory of this plan alone, zero at first, remembered from run to run."""
        if key not in self._own:
            self._own[key] = np.zeros(nbytes, np.uint8)
            self.held.append(self._own[key])
        return address_of(self._own[key])

    def at(self, tensor: Any, dtype: np.dtype = F32) -> int:
        """Address of an array that lives as long as the plan; 0 for None.

        Raises
        ------
        KernelError   if it is not a contiguous array of `dtype`
        """
        if tensor is None:
            return 0
        if not isinstance(tensor, np.ndarray) or tensor.dtype != dtype or not tensor.flags.c_contiguous:
            found = f"{getattr(tensor, 'dtype', type(tensor).__name__)} {getattr(tensor, 'shape', '')}"
            raise KernelError(f"expected a contiguous {dtype} tensor, got {found}; upload it first")
        self.held.append(tensor)
        return address_of(tensor)


def address_of(tensor: Any) -> int:
    """Where an array begins; ctypes takes a quarter of the time that NumPy takes to say it."""
    try:
        return addressof(c_char.from_buffer(tensor))
    except (TypeError, ValueError):  # it is read-only, empty, or has gaps
        return tensor.__array_interface__["data"][0]


def bits(number: float) -> int:
    """An f32 as a word."""
    return int(np.float32(number).view(np.uint32))
