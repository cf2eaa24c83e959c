"""The bytes of one logical file: memory-mapped, whole or in pieces that only concatenation makes a file."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.errors import FileAbsent, WeightsError

_PIECE = re.compile(r"^(.+)-([a-z]{2})$")  # what `split -b 512m model.gguf shard-` leaves behind


@dataclass(frozen=True, slots=True)
class Bytes:
    """Memory-mapped pieces that read as one file.

    paths, pieces : in order; every piece uint8
    starts : offset of each piece in the logical file; one more, the total size, at the end
    """

    paths: tuple[Path, ...]
    pieces: tuple[np.ndarray, ...]
    starts: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.starts[-1]

    def read(self, offset: int, n: int) -> bytes:
        """Exactly `n` bytes from `offset`; the span lies inside the file."""
        return self.view(offset, n).tobytes()

    def view(self, offset: int, n: int) -> np.ndarray:
        """[n] uint8, read-only: a view where one piece holds the whole span, else a joined copy.

        Raises
        ------
        WeightsError   if a piece on disk is shorter than it was when it was opened: reading on would be fatal
        """
        assert 0 <= offset <= offset + n <= self.size, f"bytes {offset} to {offset + n} of {self.size}"
        first = bisect_right(self.starts, offset, hi=len(self.pieces)) - 1
        parts: list[np.ndarray] = []
        for index in range(first, len(self.pieces)):
            begin = max(offset - self.starts[index], 0)
            end = min(offset + n - self.starts[index], len(self.pieces[index]))
            if end <= begin and parts:
                break
            _check_size(self.paths[index], len(self.pieces[index]))
            parts.append(self.pieces[index][begin:end])
        if len(parts) == 1:
            return parts[0]
        joined = np.concatenate(parts)
        joined.flags.writeable = False
        return joined


def map_bytes(*paths: Path) -> Bytes:
    """Map files, in order, as one.

    Raises
    ------
    FileAbsent     if one is
    WeightsError   if one is empty, or not a readable file
    """
    pieces = tuple(_map(path) for path in paths)
    return Bytes(paths, pieces, (0, *accumulate(len(piece) for piece in pieces)))


def find_pieces(path: Path) -> tuple[Path, ...]:
    """All pieces of the split file that `path` is one of, `...-aa` first; none if not so named.

    Raises
    ------
    FileAbsent   if a piece in the middle is (a missing last one shows when the header is read)
    """
    match = _PIECE.match(path.name)
    if match is None:
        return ()
    stem = match[1]
    found = {p.name: p for p in path.parent.glob("*-??") if (m := _PIECE.match(p.name)) and m[1] == stem}
    letters = [f"{stem}-{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(26 * 26)]
    last = max(letters.index(name) for name in found) if found else -1
    missing = [name for name in letters[: last + 1] if name not in found]
    if missing:
        raise FileAbsent(
            f"{path.parent}: expected pieces {letters[0]} to {letters[last]}, {missing[0]} is missing"
        )
    return tuple(found[name] for name in letters[: last + 1])


def _map(path: Path) -> np.ndarray:
    try:
        if not path.exists():
            raise FileAbsent(f"{path}: no such file")
        if not path.is_file():
            raise WeightsError(f"{path}: not a file")
        if path.stat().st_size == 0:
            raise WeightsError(f"{path}: the file is empty; was its download interrupted?")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError) as reason:
        raise WeightsError(f"{path}: cannot be read: {reason}") from reason


def _check_size(path: Path, size: int) -> None:
    try:
        now = path.stat().st_size
    except OSError as reason:
        raise WeightsError(f"{path}: vanished since it was opened: {reason.strerror}") from reason
    if now < size:
        raise WeightsError(f"{path}: shrank from {size} to {now} bytes since it was opened; open it again")
