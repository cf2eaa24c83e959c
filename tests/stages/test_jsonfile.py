"""JSON from elsewhere: strict, bounded, and complaints that say where."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import ConfigError, FormatError
from stages.jsonfile import Fields, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object, found a list"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"\xff", "not UTF-8: byte 0xff at 0"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_not_plain_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_json(text, "params.json")
    assert str(caught.value).startswith("params.json: ") and reason in str(caught.value)


def test_a_repeated_key_is_found_among_very_many() -> None:
    keys = ",".join(f'"{n}": 0' for n in [*range(200_000), 199_999])
    with pytest.raises(FormatError, match="key '199999' appears twice"):
        parse_json(f"{{{keys}}}".encode(), "model.safetensors")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    with pytest.raises(FormatError, match="expected at most 7 bytes of JSON, found 8"):
        read_json(path, 7)


@pytest.mark.parametrize(("name", "reason"), [("absent.json", "no such file"), ("", "not a file")])
def test_what_is_no_file_is_said(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_json(tmp_path / name, 8, ConfigError)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "True"), (1.5, "1.5"), ("3", "'3'"), (0, "0"), (11, "11"), ([], "a list of 0"),
        ({"a": 1}, "an object of 1"),
        (10**300, "a number of about 300 digits"), ("x" * 100, "..."), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_an_integer_outside_its_bounds_is_refused(value: object, found: str) -> None:
    with pytest.raises(FormatError, match="file: n should be a whole number from 1 to 10, found") as caught:
        Fields({"n": value}, "file").integer("n", 1, 10)
    assert found in str(caught.value)


def test_a_whole_float_counts_as_an_integer() -> None:
    assert Fields({"n": 3.0}, "file").integer("n", 1, 10) == 3


def test_null_counts_as_absent() -> None:
    fields = Fields({"n": None}, "file")
    assert fields.integer("n", 1, 10, default=4) == 4
    with pytest.raises(FormatError, match="file: 'n' is missing"):
        fields.integer("n", 1, 10)


def test_a_nested_complaint_names_the_way_there() -> None:
    with pytest.raises(FormatError, match="file: outer: x should be a string, found 1"):
        Fields({"outer": {"x": 1}}, "file").child("outer").text("x")


def test_only_one_variant_may_be_implemented() -> None:
    fields = Fields({"causal": 1, "norm": "rms"}, "file")
    fields.only("norm", "rms")
    fields.only("absent", "anything")
    with pytest.raises(FormatError, match="causal should be True, the only variant implemented, found 1"):
        fields.only("causal", True)
