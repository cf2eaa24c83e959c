"""SafeTensors headers: u64 length, that many bytes of JSON, then tensors without gaps.

    {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, "__metadata__": {...}}

Offsets count from the end of the header. Source: the format description of the safetensors project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.errors import FormatError
from stages.jsonfile import parse_json
from stages.weights.index import MAX_TENSORS, Entry, Read, check_spans, make_entry, quoted

MAX_HEADER = 1 << 25  # bytes, room for MAX_TENSORS; JSON may take twenty times its length once it is parsed
KIND_OF = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_LENGTH_BYTES = 8


def read_safetensors(read: Read, size: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """Index and metadata of a SafeTensors file of `size` bytes, from its header alone.

    Raises
    ------
    FormatError   if the header is not what the format allows; `where` names the file
    """
    header, start = _header(read, size, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: __metadata__ should map strings to strings")
    if len(header) > MAX_TENSORS:
        raise FormatError(
            f"{where}: {len(header)} tensors are more than the {MAX_TENSORS} this reader accepts"
        )
    entries = [_entry(where, name, fields, start, size) for name, fields in header.items()]
    check_spans(where, entries, start, size, gapless=True)
    return sorted(entries, key=lambda e: e.offset), metadata


def _header(read: Read, size: int, where: str) -> tuple[dict[str, Any], int]:
    if size < _LENGTH_BYTES + 2:
        raise FormatError(
            f"{where}: {size} bytes are too few for a SafeTensors file; was its download interrupted?"
        )
    length = int.from_bytes(read(0, _LENGTH_BYTES), "little")
    limit = min(MAX_HEADER, size - _LENGTH_BYTES)
    if not 2 <= length <= limit:
        raise FormatError(
            f"{where}: the header should take 2 to {limit} bytes, but claims {length}; is the file whole?"
        )
    text = read(_LENGTH_BYTES, length)
    if text[:1] != b"{":
        raise FormatError(
            f"{where}: the header should open with '{{', found {text[:8]!r}; is this SafeTensors?"
        )
    return parse_json(text, f"{where}: header"), _LENGTH_BYTES + length


def _entry(where: str, name: str, fields: Any, start: int, size: int) -> Entry:
    if not isinstance(fields, Mapping) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(
            f"{where}: tensor {quoted(name)} should have dtype, shape and data_offsets, and no more"
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in KIND_OF:
        raise FormatError(
            f"{where}: tensor {quoted(name)} is {str(dtype)[:20]!r}; readable are {', '.join(KIND_OF)}"
        )
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise FormatError(
            f"{where}: tensor {quoted(name)}: shape and data_offsets should be lists of whole numbers"
        )
    entry = make_entry(where, name, KIND_OF[dtype], tuple(shape), start + min(offsets[0], size))
    begin, end = offsets
    if end - begin != entry.nbytes:
        raise FormatError(
            f"{where}: tensor {quoted(name)} {dtype} {list(shape)} takes {entry.nbytes} bytes, but its "
            f"data_offsets span {str(end - begin)[:24]}"
        )
    return entry


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
