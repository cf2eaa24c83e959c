"""SafeTensors headers: agreement with the safetensors package, and that lies are refused without harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stages.errors import FormatError, WeightsError
from stages.weights import Entry, open_weights
from stages.weights.safetensors import read_safetensors
from tests.compare import assert_same
from tests.stages.damage import assert_refused_or_harmless


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def parse(data: bytes) -> tuple[list[Entry], dict[str, str]]:
    def read(offset: int, n: int) -> bytes:
        assert min(offset, n) >= 0 and offset + n <= len(data), f"read {n} bytes at {offset} of {len(data)}"
        return data[offset : offset + n]

    return read_safetensors(read, len(data), "x.safetensors")


def sample() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": tensor("F32", [2, 3], 0, 24),
        "b": tensor("BF16", [4], 24, 32),
        "nothing": tensor("F16", [0, 7], 32, 32),
        "scalar": tensor("F16", [], 32, 34),
    }
    return safetensors(header, bytes(range(34)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_agrees_with_the_writer_of_the_safetensors_package(tmp_path: Path, dtype: type) -> None:
    package = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(0)
    arrays = {"b": random.standard_normal((3, 5)).astype(dtype), "a": random.standard_normal(7).astype(dtype)}
    path = tmp_path / "x.safetensors"
    package.save_file(arrays, path, {"made": "here"})
    weights = open_weights(path)
    assert dict(weights.metadata) == {"made": "here"}
    assert set(weights.entries) == set(arrays)
    for name, array in arrays.items():
        assert_same(weights.array(name), array.astype(np.float32), what=name)


def test_agrees_with_the_reader_of_the_safetensors_package(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    path.write_bytes(sample())
    weights = open_weights(path)
    for name, found in package.deserialize(sample()):
        entry = weights.entries[name]
        assert (list(entry.shape), entry.kind.upper()) == (found["shape"], found["dtype"])
        assert weights.raw(name).tobytes() == bytes(found["data"])


def test_raw_bytes_are_a_read_only_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sample())
    raw = open_weights(path).raw("a")
    assert raw.base is not None and not raw.flags.writeable
    assert raw.tobytes() == bytes(range(24))


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sample())
    weights = open_weights(path)
    assert weights.array("scalar").shape == ()
    assert weights.array("nothing").shape == (0, 7)


def test_a_name_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sample())
    with pytest.raises(WeightsError, match="no tensor 'c'"):
        open_weights(path).raw("c")


LIES = {
    "nothing": (b"", "too few"),
    "long header": ((1 << 63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808"),
    "not a header": (safetensors(b"[1]"), "open with"),
    "not JSON": (safetensors(b'{"a": }'), "not valid JSON"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (safetensors(b'{"a": ' + b"[" * 100_000), "nested too deeply"),
    "same name": (safetensors(b'{"a": 1, "a": 2}'), "twice"),
    "many digits": (safetensors(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "metadata": (safetensors({"__metadata__": {"a": 1}}), "strings to strings"),
    "no fields": (safetensors({"a": {}}), "should have dtype, shape and data_offsets"),
    "more fields": (safetensors({"a": tensor("F32", [], 0, 4) | {"x": 1}}, bytes(4)), "no more"),
    "dtype": (safetensors({"a": tensor("F8_E4M3", [4], 0, 4)}, bytes(4)), "F8_E4M3"),
    "dtype is a list": (safetensors({"a": tensor([], [4], 0, 4)}, bytes(4)), "readable are"),  # type: ignore[arg-type]
    "negative": (safetensors({"a": tensor("F32", [-1, -1], 0, 4)}, bytes(4)), "whole numbers"),
    "fraction": (safetensors({"a": tensor("F32", [1.0], 0, 4)}, bytes(4)), "whole numbers"),
    "boolean": (safetensors({"a": tensor("F32", [True], 0, 4)}, bytes(4)), "whole numbers"),
    "huge": (safetensors({"a": tensor("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4)), "absurd shape"),
    "huge and empty": (safetensors({"a": tensor("F32", [1 << 62, 0], 0, 0)}), "absurd shape"),
    "rank 99": (safetensors({"a": tensor("F32", [1] * 99, 0, 4)}, bytes(4)), "99 dimensions"),
    "span": (safetensors({"a": tensor("F32", [2], 0, 4)}, bytes(4)), "takes 8 bytes"),
    "backwards": (safetensors({"a": tensor("F32", [1], 4, 0)}, bytes(4)), "data_offsets span -4"),
    "past the end": (safetensors({"a": tensor("F32", [2], 0, 8)}, bytes(4)), "cut short"),
    "far past the end": (safetensors({"a": tensor("F32", [2], 10**30, 10**30 + 8)}, bytes(8)), "cut short"),
    "overlap": (
        safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 2, 6)}, bytes(6)),
        "overlap",
    ),
    "hole": (safetensors({"a": tensor("F32", [1], 4, 8)}, bytes(8)), "belong to no tensor"),
    "rest": (safetensors({"a": tensor("F32", [1], 0, 4)}, bytes(8)), "should end with the file"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_header_is_refused_with_its_reason(name: str) -> None:
    data, reason = LIES[name]
    with pytest.raises(FormatError, match=r"x\.safetensors: ") as caught:
        parse(data)
    assert reason in str(caught.value)


@examples(max_examples=20, deadline=None)
@given(length=st.integers(0, len(sample()) - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(FormatError):
        parse(sample()[:length])


@examples(max_examples=50, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    digits=st.lists(
        st.tuples(st.integers(8, len(sample()) - 1), st.sampled_from(b'0123456789[]{},:"')), max_size=4
    ),
)
def test_damage_is_refused_or_harmless(flips: list[tuple[int, int]], digits: list[tuple[int, int]]) -> None:
    data = bytearray(sample())
    for at, value in flips + digits:
        data[at] = value
    assert_refused_or_harmless(parse, bytes(data))
