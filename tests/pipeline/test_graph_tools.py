"""`inspect`, `draw` and `schema` say what the classes say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.catalog import KINDS, find, names
from pipeline.complaints import Complaints
from pipeline.errors import GraphError
from pipeline.graph import load_graph, parse_graph
from pipeline.options import options_of
from pipeline.parts import graphs_folder
from pipeline.tools.draw import dot, mermaid
from pipeline.tools.inspect import explain, listing
from pipeline.tools.schema import graph_schema, schema_text
from pipeline.tree import Leaf, Row, Tree, read_tree

EVERY = [(kind, name) for kind in KINDS for name in names(kind)]


def plain(tree: Tree) -> Any:
    if isinstance(tree, Leaf):
        return tree.value
    if isinstance(tree, Row):
        return [plain(item) for item in tree.items]
    return {key.text: plain(value) for key, value in tree.entries}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_everything_in_the_catalog_explains_itself_and_its_options(kind, name):
    page = explain(name)
    assert name in listing()
    for option in options_of(find(kind, name)).values():
        assert f"    {option.name}: " in page
        assert option.help or kind != "stage", f"{name}.{option.name} has no line in its docstring"


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(GraphError, match="did you mean 'resample'"):
        explain("resampel")


def test_a_drawing_shows_every_node_and_the_rate_of_every_arrow():
    ends = "source: mic\nsinks: [lines, wav: {path: a.wav, from: resample}]\n"
    graph = parse_graph("use: voxtral.yaml\n" + ends, environ={})
    picture = mermaid(graph)
    assert picture.startswith('flowchart LR\n  n0(["mic"])\n  n1["resample"]\n')
    assert picture.count("-->") == len(graph.nodes) + 2
    for label in ("pcm 16 kHz", "mel 100 Hz", "frames 50 Hz", "frames 12.5 Hz", "tokens 12.5 Hz"):
        assert f'-->|"{label}"|' in picture
        assert f'[label="{label}"];' in dot(graph)
    assert dot(graph).count("->") == picture.count("-->") and dot(graph).endswith("}")


def test_a_graph_whose_plugs_do_not_fit_is_drawn_without_rates():
    picture = mermaid(parse_graph("chain: [mel, pad: {as: 'a\"]b'}]"))
    assert picture.splitlines()[3] == '  n2["a#quot;]b: pad"]'
    assert "|" not in picture


def test_the_schema_is_valid_and_takes_every_graph_that_ships():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    paths = sorted(graphs_folder().glob("*.yaml"))
    assert paths
    for path in paths:
        tree = read_tree(path.read_text(), path.name, Complaints())
        assert tree is not None
        checker.validate(plain(tree))
        load_graph(path, environ={})


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"chain": ["mell"]},
        {"chain": [{"pad": {"left": 80}}]},
        {"chain": [{"pad": {"lefft": "80ms"}}]},
        {"chain": ["mel"], "source": "file"},
        {"chain": ["mel"], "sink": "lines", "sinks": ["lines"]},
        {"chain": ["mel"], "lanes": {"count": 0}},
        {"chain": ["mel"], "chian": []},
        {"chain": ["mel"], "backend": "cud"},
        {"chain": ["mel"], "backend": {"name": "cuda", "kvs": "q8"}},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(wrong):
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(graph_schema()).is_valid(wrong)
    with pytest.raises(GraphError):
        parse_graph(json.dumps(wrong))
