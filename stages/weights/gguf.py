"""GGUF headers, versions 2 and 3.

    "GGUF" · u32 version · u64 tensors · u64 pairs
    pair    string key · u32 type · value
              string = u64 length · bytes; array = u32 type · u64 count · values
    tensor  string name · u32 rank · u64 dims[rank], innermost first · u32 type · u64 offset
    data    from the next multiple of general.alignment; offsets count from there

Source: the format description of the ggml project (docs/gguf.md). Little-endian only.
"""

from __future__ import annotations

import struct
from typing import Any

from stages.errors import FormatError
from stages.weights.index import MAX_RANK, MAX_TENSORS, Entry, Read, check_spans, make_entry, quoted

KIND_OF = {0: "f32", 1: "f16", 2: "q4_0", 8: "q8_0", 30: "bf16"}  # ggml_type
_TYPE_NAMES = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64",
}  # fmt: skip

_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<B"))) | {10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LEAST_BYTES = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()} | {_STRING: 8, _ARRAY: 12}

DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_KEY = 65_535  # the format's own limit
MAX_STRING = 1 << 24
MAX_PAIRS = 1 << 16
MAX_ELEMENTS = 1 << 21  # of all arrays together; a tokenizer of 131,072 pieces with scores has 393,216
MAX_NESTING = 4
MAX_HEADER = 1 << 28
_WINDOW = 1 << 16


def read_gguf(read: Read, size: int, where: str) -> tuple[list[Entry], dict[str, Any]]:
    """Index and metadata of a GGUF file of `size` bytes, from its header alone; skips metadata arrays.

    Raises
    ------
    FormatError   if the header is not what the format allows, or a tensor's type is unknown
    """
    cursor = _Cursor(read, size, where)
    tensors, pairs = _preamble(cursor)
    metadata = _metadata(cursor, pairs)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.wrong("general.alignment", f"a power of two up to {MAX_ALIGNMENT}", alignment)
    found = [_tensor_info(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    entries = [_entry(cursor, *info, start, alignment) for info in found]
    if len({entry.name for entry in entries}) < len(entries):
        raise FormatError(f"{where}: two tensors have the same name")
    check_spans(where, entries, start, size, gapless=False)
    return sorted(entries, key=lambda e: e.offset), metadata


class _Cursor:
    """Walks a header in windows, never past `size`, and never allocates more than was really there."""

    def __init__(self, read: Read, size: int, where: str):
        self.where, self.at = where, 0
        self._read, self._limit, self._truncated = read, min(size, MAX_HEADER), size <= MAX_HEADER
        self._window, self._window_at = b"", 0
        self.elements = 0

    @property
    def left(self) -> int:
        return self._limit - self.at

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            cause = "cut short?" if self._truncated else f"a header may take {MAX_HEADER} bytes"
            raise FormatError(
                f"{self.where}: {what} at byte {self.at} needs {n} bytes, {self.left} are left; {cause}"
            )
        begin = self.at - self._window_at
        if begin + n > len(self._window):
            self._window = self._read(self.at, min(max(n, _WINDOW), self.left))
            self._window_at, begin = self.at, 0
        self.at += n
        return self._window[begin : begin + n]

    def skip(self, n: int, what: str) -> None:
        if n > self.left:
            self.take(n, what)
        self.at += n
        if self.at > self._window_at + len(self._window):
            self._window, self._window_at = b"", self.at

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def count(self, code: str, what: str, limit: int, each: int) -> int:
        """A count of things of at least `each` bytes: bounded by `limit` and by the bytes that are there."""
        value = self.number(code, what)
        if value > limit or value * each > self.left:
            self.wrong(what, f"at most {min(limit, self.left // each)}", value)
        return value

    def string(self, what: str, limit: int = MAX_STRING) -> str:
        raw = self.take(self.count("<Q", f"length of {what}", limit, 1), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return self.wrong(what, "UTF-8", raw[:40])

    def wrong(self, what: str, expected: str, found: Any) -> Any:
        raise FormatError(f"{self.where}: {what} before byte {self.at} should be {expected}, found {found!r}")


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(4, "the magic")
    if magic != b"GGUF":
        cursor.wrong("the first four bytes", "b'GGUF'", magic)
    version = cursor.number("<I", "the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.wrong("the version", "2 or 3" + (", little-endian" if swapped in (2, 3) else ""), version)
    tensors = cursor.count("<Q", "the number of tensors", MAX_TENSORS, 8 + 4 + 4 + 8)
    return tensors, cursor.count("<Q", "the number of metadata pairs", MAX_PAIRS, 8 + 4 + 1)


def _metadata(cursor: _Cursor, pairs: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    seen: set[str] = set()
    for _ in range(pairs):
        key = cursor.string("a metadata key", MAX_KEY)
        if key in seen:
            raise FormatError(f"{cursor.where}: metadata key {quoted(key)} appears twice")
        seen.add(key)
        kind = cursor.number("<I", f"the type of {quoted(key)}")
        if kind == _ARRAY:
            _skip_array(cursor, key, 1)
        else:
            metadata[key] = _value(cursor, kind, key)
    return metadata


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.string(f"the value of {quoted(key)}")
    if kind not in _SCALARS:
        cursor.wrong(f"the type of {quoted(key)}", "a value type from 0 to 12", kind)
    value = cursor.number(_SCALARS[kind], f"the value of {quoted(key)}")
    return bool(value) if kind == _BOOL else value


def _skip_array(cursor: _Cursor, key: str, depth: int) -> None:
    kind = cursor.number("<I", f"the element type of {quoted(key)}")
    if kind not in _LEAST_BYTES or depth > MAX_NESTING:
        cursor.wrong(
            f"the element type of {quoted(key)}",
            f"a value type from 0 to 12, nested at most {MAX_NESTING} deep",
            kind,
        )
    count = cursor.count("<Q", f"the length of {quoted(key)}", 1 << 40, _LEAST_BYTES[kind])
    if kind in _SCALARS:
        cursor.skip(count * _LEAST_BYTES[kind], f"the array {quoted(key)}")
        return
    cursor.elements += count
    if cursor.elements > MAX_ELEMENTS:
        cursor.wrong(f"the length of {quoted(key)}", f"below {MAX_ELEMENTS} strings in all", count)
    for _ in range(count):
        if kind == _ARRAY:
            _skip_array(cursor, key, depth + 1)
        else:
            cursor.skip(
                cursor.count("<Q", f"the length of a string in {quoted(key)}", MAX_STRING, 1),
                f"a string in {quoted(key)}",
            )


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor's name", MAX_KEY)
    rank = cursor.count("<I", f"the rank of {quoted(name)}", MAX_RANK, 8)
    dims = struct.unpack(f"<{rank}Q", cursor.take(8 * rank, f"the dimensions of {quoted(name)}"))
    kind = cursor.number("<I", f"the type of {quoted(name)}")
    return name, dims[::-1], kind, cursor.number("<Q", f"the offset of {quoted(name)}")


def _entry(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int, alignment: int
) -> Entry:
    if kind not in KIND_OF:
        shown = f"{_TYPE_NAMES.get(kind, 'unknown')} (type {kind})"
        readable = ", ".join(k.upper() for k in KIND_OF.values())
        raise FormatError(f"{cursor.where}: tensor {quoted(name)} is {shown}; readable are {readable}")
    if offset % alignment:
        raise FormatError(
            f"{cursor.where}: tensor {quoted(name)} lies at {offset}, not a multiple of {alignment}"
        )
    return make_entry(cursor.where, name, KIND_OF[kind], shape, start + offset)
