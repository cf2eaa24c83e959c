"""Memory verbs that have work to do: weights laid out for the kernels, and copies."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels import quant
from kernels.cpu.layout import BLOCK, DENSE, LINE_BYTES, QUADS
from kernels.cpu.plan import Steps, address_of
from kernels.errors import KernelError
from kernels.tensor import QuantTensor

PIECE_BYTES = 1 << 24  # of a file, taken at a time
SLAB_BYTES = 1 << 25
COPY_BYTES = 1 << 18  # copied in a part
U8 = np.dtype(np.uint8)


class Slabs:
    """Memory for weights, many of them in one allocation, so that the system can back it by huge pages.

    A matrix of 2 MB by itself lies in pages of 4 KiB, and a third of the time it takes to read it goes into
    finding them. A slab lives as long as anything in it.
    """

    def __init__(self) -> None:
        self._slab = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> np.ndarray:
        """Bytes with no content yet, from a cache line on."""
        if nbytes > len(self._slab):
            size = max(SLAB_BYTES, nbytes) + LINE_BYTES
            slab = np.empty(size, np.uint8)
            self._slab = slab[-address_of(slab) % LINE_BYTES :]
        taken, rest = self._slab[:nbytes], -(-nbytes // LINE_BYTES) * LINE_BYTES
        self._slab = self._slab[rest:]
        return taken


def adopt(
    raw: np.ndarray, kind: str, shape: tuple[int, ...], height: int, slabs: Slabs, run: Callable[..., None]
) -> Any:
    """A matrix in memory of its own; what was mapped of a file is given back piece by piece."""
    rows, columns = shape
    if kind in DENSE:
        memory = slabs.take(raw.nbytes)
        for start in range(0, raw.nbytes, PIECE_BYTES):
            part = slice(start, start + PIECE_BYTES)
            memory[part] = raw[part]
            _give_back(raw[part])
        if kind == "f32":
            return memory.view(np.float32).reshape(shape)
        return QuantTensor(kind, shape, (memory,))
    width, groups = quant.row_bytes(kind, columns), -(-rows // height)
    memory = slabs.take(groups * height * width)
    each = max(1, PIECE_BYTES // max(1, width * height))
    for first in range(0, groups, each):
        last = min(groups, first + each)
        piece = raw[first * height * width : last * height * width]
        place = memory[first * height * width : last * height * width]
        there = min(rows, last * height) - first * height

        def interleave(steps: Steps, piece=piece, place=place, there=there, parts=last - first) -> None:
            operands = steps.at(piece, U8), steps.at(place, U8), there, columns // BLOCK, QUADS[kind], height
            steps.add("interleave", parts, *operands, cost=2 * piece.nbytes)

        run(interleave)
        _give_back(piece)
    return QuantTensor(kind, shape, (memory,))


def copy(out: np.ndarray, tensor: np.ndarray, *, steps: Steps) -> None:
    """The bytes of `tensor`, of which the first axis may skip some, into `out`."""
    if tensor.flags.c_contiguous:
        row, stride, parts = COPY_BYTES, COPY_BYTES, -(-tensor.nbytes // COPY_BYTES)
    else:
        if not tensor[:1].flags.c_contiguous:
            raise KernelError(f"copy: a view of {tensor.shape} may skip along its first axis alone")
        row, stride, parts = tensor[0].nbytes, tensor.strides[0], len(tensor)
    steps.held.append(tensor)
    operands = steps.at(out, out.dtype), address_of(tensor), row, stride, out.nbytes
    steps.add("copy", parts, *operands, cost=2 * out.nbytes)


def stored(w: Any) -> tuple[str, np.ndarray]:
    """The kind of a weight and its memory."""
    return (w.kind, w.tiles[0]) if isinstance(w, QuantTensor) else ("f32", w)


def _give_back(part: np.ndarray) -> None:
    """Lets the system forget the pages behind `part` of a mapped file: it still has the file."""
    if part.flags.writeable or not part.nbytes:
        return
    owner: Any = part
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    whole = np.frombuffer(owner, np.uint8)
    start, end = address_of(part) - address_of(whole), address_of(part) - address_of(whole) + part.nbytes
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # a page shared with a neighbour stays
    if end - start >= mmap.PAGESIZE:
        owner.madvise(mmap.MADV_DONTNEED, start, (end - start) // mmap.PAGESIZE * mmap.PAGESIZE)


