"""GGUF headers: what is accepted, and that lies are refused without harm."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kernels.quant import pack
from stages.errors import FormatError
from stages.weights import Entry, open_weights
from stages.weights.gguf import read_gguf
from tests.compare import assert_same
from tests.stages.damage import assert_refused_or_harmless

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
STRING, ARRAY, U32 = 8, 9, 4


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def info(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    infos: list[bytes],
    data: bytes = b"",
    pairs: list[bytes] | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    pairs = pairs or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs + infos)
    return head + b"\0" * (-len(head) % alignment) + data


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """`read` that fails the test when it is asked for anything outside the file."""

    def read(offset: int, n: int) -> bytes:
        assert min(offset, n) >= 0 and offset + n <= len(data), f"read {n} bytes at {offset} of {len(data)}"
        return data[offset : offset + n]

    return read


def parse(data: bytes) -> tuple[list[Entry], dict[str, Any]]:
    return read_gguf(reader(data), len(data), "x.gguf")


def sample() -> bytes:
    """Every kind of tensor and several kinds of metadata in under a kilobyte."""
    infos, blob = [], b""
    for kind, code in TYPES.items():
        raw = pack(np.arange(64, dtype=np.float32).reshape(2, 32), kind).tobytes()
        infos.append(info(kind, (32, 2), code, len(blob)))
        blob += raw + b"\0" * (-len(raw) % 32)
    pairs = [
        pair("general.architecture", STRING, string("voxtral")),
        pair("general.alignment", U32, struct.pack("<I", 32)),
        pair("tokens", ARRAY, struct.pack("<IQ", STRING, 2) + string("a") + string("bc")),
        pair("scores", ARRAY, struct.pack("<IQ", 6, 3) + struct.pack("<3f", 1, 2, 3)),
    ]
    return gguf(infos, blob, pairs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_reads_back_with_its_dimensions_reversed(tmp_path: Path, kind: str, version: int) -> None:
    raw = pack(np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64), kind)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([info("w", (64, 3), TYPES[kind], 0)], raw.tobytes(), version=version))
    weights = open_weights(path)
    assert (weights.entries["w"].kind, weights.entries["w"].shape) == (kind, (3, 64))
    assert_same(weights.raw("w"), raw.reshape(-1), what=f"bytes of {kind}")


def test_metadata_scalars_and_strings_are_kept_and_arrays_skipped() -> None:
    _, metadata = parse(sample())
    assert metadata == {"general.architecture": "voxtral", "general.alignment": 32}


def test_a_stated_alignment_is_honoured() -> None:
    pairs = [pair("general.alignment", U32, struct.pack("<I", 256))]
    entries, _ = parse(gguf([info("w", (4,), 0, 0)], bytes(16), pairs, alignment=256))
    assert entries[0].offset == 256


def test_agrees_with_the_writer_of_the_gguf_package(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    path, array = tmp_path / "x.gguf", np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer = package.GGUFWriter(path, "test")
    writer.add_custom_alignment(128)
    writer.add_array("labels", ["a", "b"])
    writer.add_tensor("one", array)
    writer.add_tensor("two", array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_weights(path)
    assert_same(weights.array("one"), array, what="one")
    assert_same(weights.array("two"), array, what="two")


LIES = {
    "magic": (b"GGUX" + sample()[4:], "GGUF"),
    "version 1": (gguf([], version=1), "2 or 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "2^60 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "number of tensors"),
    "2^60 pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata pairs"),
    "long name": (gguf([struct.pack("<Q", 1 << 50)], bytes(64)), "length of"),
    "long array": (gguf([], pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 1 << 61))]), "length of 'a'"),
    "deep array": (
        gguf([], pairs=[pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9)], data=bytes(99)),
        "nested",
    ),
    "value type": (gguf([], pairs=[pair("a", 77, bytes(8))]), "0 to 12"),
    "alignment": (gguf([], pairs=[pair("general.alignment", U32, struct.pack("<I", 48))]), "power of two"),
    "no alignment": (gguf([], pairs=[pair("general.alignment", U32, bytes(4))]), "power of two"),
    "same key": (gguf([], pairs=[pair("a", U32, bytes(4))] * 2), "twice"),
    "not UTF-8": (gguf([], pairs=[pair("a", STRING, string(b"\xff"))]), "UTF-8"),
    "rank 99": (gguf([string("w") + struct.pack("<I", 99)], data=bytes(999)), "rank of 'w'"),
    "2^63 columns": (gguf([info("w", (1 << 63, 4), 0, 0)], bytes(64)), "absurd shape"),
    "unknown type": (gguf([info("w", (32,), 12, 0)], bytes(64)), "Q4_K"),
    "removed type": (gguf([info("w", (32,), 4, 0)], bytes(64)), "type 4"),
    "odd rows": (gguf([info("w", (33, 2), 2, 0)], bytes(64)), "33"),
    "unaligned": (gguf([info("w", (4,), 0, 4)], bytes(64)), "multiple of 32"),
    "past the end": (gguf([info("w", (4,), 0, 1 << 40)], bytes(64)), "cut short"),
    "too long": (gguf([info("w", (64,), 0, 0)], bytes(64)), "cut short"),
    "overlap": (gguf([info("a", (16,), 0, 0), info("b", (16,), 0, 32)], bytes(96)), "overlap"),
    "same name": (gguf([info("w", (4,), 0, 0), info("w", (4,), 0, 32)], bytes(64)), "same name"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_header_is_refused_with_its_reason(name: str) -> None:
    data, reason = LIES[name]
    with pytest.raises(FormatError, match=r"x\.gguf: ") as caught:
        parse(data)
    assert reason in str(caught.value)


@examples(max_examples=20, deadline=None)
@given(length=st.integers(0, len(sample()) - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(FormatError):
        parse(sample()[:length])


@examples(max_examples=50, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(sample()) - 9), st.integers(0, 255)), max_size=6),
    words=st.lists(st.tuples(st.integers(0, 400), st.integers(0, (1 << 64) - 1)), max_size=2),
)
def test_damage_is_refused_or_harmless(flips: list[tuple[int, int]], words: list[tuple[int, int]]) -> None:
    data = bytearray(sample())
    for at, value in flips:
        data[at] = value
    for at, value in words:
        data[at : at + 8] = value.to_bytes(8, "little")
    assert_refused_or_harmless(parse, bytes(data))
