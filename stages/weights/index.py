"""Where each tensor lies in its file, and the bytes behind it.

An index is made from headers alone: the parsers in `safetensors.py` and `gguf.py` take `read(offset, n)` and
a size, so the header may come from a memory map or from HTTP ranges. `Weights` joins an index with
memory-mapped bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kernels.errors import ShapeError
from kernels.quant import nbytes, unpack
from kernels.tensor import KINDS
from stages.errors import FormatError, WeightsError
from stages.weights.shards import Bytes

Read = Callable[[int, int], bytes]  # (offset, n) -> exactly n bytes; only asked for what lies inside the file

MAX_TENSORS = 100_000  # Voxtral Mini 4B has 711; a lying count must not cost memory
MAX_RANK = 8
ELEMENT_LIMIT = 1 << 48  # product of one tensor's dimensions, zeros apart, since NumPy multiplies them too
_SHOWN = 100  # characters of a name


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file.

    kind : one of kernels.tensor.KINDS
    shape : row-major, [out, in] for a linear layer
    offset, nbytes : its span in logical file number `file`, counted from that file's first byte
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one checkpoint: an index over memory-mapped files. `open_weights` makes one.

    source : the path that was opened
    entries : by the names the file uses, in file order
    metadata : what the header says besides tensors (strings and numbers)
    files : the bytes that `Entry.file` numbers
    """

    source: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Any]
    files: tuple[Bytes, ...]

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of tensor `name`, uint8 [nbytes]: read-only; a copy where shards split it.

        Raises
        ------
        WeightsError   if there is no such tensor, or the file has shrunk since it was opened
        """
        entry = self._entry(name)
        return self.files[entry.file].view(entry.offset, entry.nbytes)

    def array(self, name: str) -> np.ndarray:
        """Tensor `name` as float32, in its shape."""
        entry = self._entry(name)
        return unpack(self.raw(name), entry.kind, entry.shape)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise WeightsError(f"{self.source}: there is no tensor {quoted(name)}")
        return self.entries[name]


def quoted(name: str) -> str:
    """A tensor's name for a message: whoever wrote the file chose its length, too."""
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")


def make_entry(where: str, name: str, kind: str, shape: tuple[int, ...], offset: int) -> Entry:
    """An entry whose size follows from its kind and shape.

    Raises
    ------
    FormatError   if a dimension is absurd, or rows are not whole blocks of a quantised kind
    """
    if len(shape) > MAX_RANK or any(n < 0 for n in shape) or prod(n or 1 for n in shape) > ELEMENT_LIMIT:
        shown = str(shape) if len(shape) <= MAX_RANK else f"{len(shape)} dimensions"
        raise FormatError(f"{where}: tensor {quoted(name)} has an absurd shape, {shown[:120]}")
    assert kind in KINDS, f"unknown kind {kind!r}"
    try:
        return Entry(name, kind, shape, offset, nbytes(kind, shape))
    except ShapeError as reason:
        raise FormatError(f"{where}: tensor {quoted(name)}: {reason}") from None


def check_spans(where: str, entries: Iterable[Entry], start: int, stop: int, gapless: bool) -> None:
    """Refuse entries that lie outside [start, stop) of their file, overlap, or (if `gapless`) leave holes."""
    end, last = start, None
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset < start or entry.offset + entry.nbytes > stop:
            raise FormatError(
                f"{where}: tensor {quoted(entry.name)} should lie in bytes {start} to {stop}, but spans "
                f"{entry.offset} to {entry.offset + entry.nbytes}; is the file cut short, or a shard absent?"
            )
        if entry.offset < end:
            assert last is not None
            names = f"{quoted(last.name)} and {quoted(entry.name)}"
            raise FormatError(f"{where}: tensors {names} overlap at byte {entry.offset}")
        if gapless and entry.offset > end:
            gap = entry.offset - end
            raise FormatError(f"{where}: {gap} bytes before {quoted(entry.name)} belong to no tensor")
        end, last = entry.offset + entry.nbytes, entry
    if gapless and end != stop:
        raise FormatError(
            f"{where}: the last tensor should end with the file at byte {stop}, but ends at {end}"
        )
