"""YAML as graphs read it: core scalars, no anchors, tags or second documents, every fault with its place."""

from __future__ import annotations

import math

import pytest

from pipeline.complaints import Complaints, Mark
from pipeline.tree import MOST_DEPTH, MOST_VALUES, Leaf, Row, Table, read_tree

SCALARS = [
    ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"),
    ("true", True), ("False", False), ("tRUE", "tRUE"),
    ("012", 12), ("0o14", 12), ("0xC", 12), ("-7", -7), ("1_000", "1_000"), ("12:30:45", "12:30:45"),
    ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), (".inf", math.inf), ("-.inf", -math.inf), ("1.5.2", "1.5.2"),
    ("", None), ("~", None), ("null", None), ("None", "None"), ("2001-01-01", "2001-01-01"), ("=", "="),
    ("'12'", "12"), ('"true"', "true"), ("80ms", "80ms"), ("9" * 60, "9" * 60),
]  # fmt: skip
REFUSED = [
    ("a: &x 1\nb: 2", "f:1:4: anchor '&x'"),
    ("a: *x", "f:1:4: alias '*x'"),
    ("a: !!python/object:os.system x", "f:1:4: tag 'tag:yaml.org,2002:python/object:os.system'"),
    ("a: 1\nb: 2\na: 3", "f:3:1: key 'a' is already given on line 1"),
    ("a: 1\n---\nb: 2", "f:2:1: a second document"),
    ("a:\n\tb: 1", "f:2:1: a tab cannot indent"),
    ("a: [1, 2", "f:1:9: while parsing a flow sequence"),
    ("a: 1\n b: 2", "f:2:3: mapping values are not allowed here"),
    ("? [1]\n: 2", "f:1:3: a key is a name, but this one is a list"),
    ("a: \x07", "f:1:4: character 7 is not allowed"),
    ('a: "\\0"', "f:1:4: NUL"),
    ('a: "\\ud800"', "f:1:4: NUL and lone surrogates"),
    ('a: "\\Uffffffff"', "f: not YAML"),
    ("%YAML " + "1" * 5000 + ".1\n---\na", "f: not YAML"),
    ("[" * (MOST_DEPTH + 1), f"f:1:{MOST_DEPTH + 1}: nested deeper"),
    ("- a\n" * (MOST_VALUES + 1), f"f:{MOST_VALUES + 1}:3: more than"),
    ("a" * (2 << 20), "f: 2097152 characters"),
]


def read(text: str) -> tuple[Leaf | Row | Table | None, list[str]]:
    complaints = Complaints()
    return read_tree(text, "f", complaints), complaints.lines


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    tree, faults = read(f"[{text}]" if text else "[~]")
    assert isinstance(tree, Row) and not faults
    leaf = tree.items[0]
    assert isinstance(leaf, Leaf) and type(leaf.value) is type(value) and leaf.value == value


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_what_graphs_do_not_read_is_named_with_its_place(text, says):
    _, faults = read(text)
    assert faults and faults[0].startswith(says)
    assert all("\n" not in fault and len(fault) < 250 for fault in faults)


def test_a_billion_laughs_are_not_even_begun():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    _, faults = read("\n".join(lines))
    assert "anchor '&a'" in faults[0] and "anchor '&b'" in faults[1] and "alias '*a'" in faults[2]


def test_marks_count_lines_and_columns_from_one():
    tree, _ = read("a: 1\nb: {c: x}\n")
    assert isinstance(tree, Table)
    inner = tree.entries[1][1]
    assert isinstance(inner, Table)
    assert str(inner.entries[0][1].mark) == "f:2:8"
    assert str(Mark("--set a=b")) == "--set a=b"


def test_several_faults_come_together():
    _, faults = read("a: *x\nb: &y 1\nb: 2\n")
    assert [fault.split(":")[1] for fault in faults] == ["1", "2", "3"]
