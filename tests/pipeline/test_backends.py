"""Where the arithmetic runs, as a graph says it: a name, or a name with options of its own."""

from __future__ import annotations

import json

import pytest

from kernels import BackendMissing, open_backend
from kernels.backend import BACKENDS
from pipeline.backends import options_of_backend, takers
from pipeline.build import build
from pipeline.cli import main
from pipeline.errors import GraphError
from pipeline.graph import Graph, load_graph, parse_graph
from pipeline.tools.inspect import explain, listing
from pipeline.tools.schema import graph_schema

CHAIN = "use: voxtral.yaml\n"
Q8 = "backend: {name: cuda, kv: q8}"


def read(text: str = "", *sets: str, **params: str) -> Graph:
    return parse_graph(CHAIN + text, "g.yaml", sets=sets, params=params)


def chosen(text: str = "", *sets: str, **params: str) -> tuple[str, dict[str, object]]:
    graph = read(text, *sets, **params)
    return graph.backend, graph.backend_options


def having(option: str) -> str:
    """Who takes an option, as a complaint names them."""
    names = takers(option)
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'}"


def faults(text: str, *sets: str) -> list[str]:
    with pytest.raises(GraphError) as caught:
        read(text, *sets)
    return list(caught.value.complaints)


def test_a_name_alone_has_no_options():
    assert chosen() == ("auto", {})
    assert chosen("backend: cuda") == ("cuda", {})
    assert chosen("backend: {name: portable}") == ("portable", {})


def test_a_mapping_brings_options():
    assert chosen(Q8) == ("cuda", {"kv": "q8"})
    assert chosen("backend: {kv: q8}") == ("auto", {"kv": "q8"})
    assert chosen("params: {kind: {type: str, default: q8}}\nbackend: {name: cuda, kv: $kind}") == (
        "cuda", {"kv": "q8"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["backend.kv=q8"], ("auto", {"kv": "q8"})),
        (["backend.name=cuda"], ("cuda", {})),
        (["backend.kv=q8", "backend=cuda"], ("cuda", {"kv": "q8"})),
        (["backend=cuda", "backend.kv=q8"], ("cuda", {"kv": "q8"})),
        (["backend=cuda", "backend.kv=q8", "backend.kv=f16"], ("cuda", {"kv": "f16"})),
        (["backend=cuda", "backend.kv=q8", "backend=portable"], ("portable", {})),
    ],
)
def test_options_are_set_from_outside(sets, expected):
    assert chosen("", *sets) == expected


def test_another_backend_leaves_the_options_of_the_old_one_behind():
    assert chosen(Q8, "backend=cuda") == ("cuda", {"kv": "q8"})
    assert chosen(Q8, "backend=portable") == ("portable", {})
    assert chosen("backend: {name: auto, kv: q8}", "backend=cuda") == ("cuda", {"kv": "q8"})


def test_the_command_line_has_the_last_word():
    assert chosen("", backend="cuda") == ("cuda", {})
    assert chosen("backend: auto", backend="portable") == ("portable", {})
    assert chosen(Q8, backend="portable") == ("portable", {})
    assert chosen(Q8, backend="cuda") == ("cuda", {"kv": "q8"})


def test_a_used_file_may_bring_them():
    graph = load_graph("file", sets=["backend.name=cuda", "backend.layout=rows"])
    assert (graph.backend, graph.backend_options) == ("cuda", {"layout": "rows"})


def test_faults_have_their_place_and_name_what_is_known():
    assert faults("backend: {name: cuda, layot: rows}") == [
        "g.yaml:2:23: cuda has no option 'layot'; did you mean 'layout'?",
    ]
    assert faults("backend: {name: cuda, moon: 3}") == [
        "g.yaml:2:23: cuda has no option 'moon'; cuda takes: kv, layout",
    ]
    assert faults("backend: {name: cuda, kv: q9}") == [
        "g.yaml:2:27: cuda.kv: expected 'f16' or 'q8', found 'q9'",
    ]
    assert faults("backend: {name: portable, kv: q8}") == [
        f"g.yaml:2:27: portable has no option 'kv'; {having('kv')}",
    ]
    assert faults("backend: {name: portable, moon: 3}") == [
        "g.yaml:2:27: portable has no option 'moon'; portable takes none",
    ]
    known = ", ".join(sorted(options_of_backend("auto")))
    assert faults("backend: {moon: 3}") == [
        f"g.yaml:2:11: backend has no option 'moon'; backend takes: {known}"
    ]
    assert faults("", "backend.layout=odd") == [
        "--set backend.layout=odd: backend.layout: expected 'fragment' or 'rows', found 'odd'"
    ]
    names = " or ".join(map(repr, ("auto", *BACKENDS)))
    assert faults("backend: {name: cude, kv: q8}") == [
        f"g.yaml:2:17: backend: expected {names}, found 'cude'"
    ]
    assert faults("backend: {name: [cuda]}") == [f"g.yaml:2:17: backend: expected {names}, found a list"]
    assert faults("backend: [cuda]") == [
        "g.yaml:2:10: backend is a name, or {name: cuda, kv: q8}, found a list",
    ]


def test_a_program_only_option_cannot_be_written():
    assert set(options_of_backend("cuda")) == {"kv", "layout"}
    assert options_of_backend("portable") == {}
    assert faults("backend: {name: cuda, device: 1}") == [
        "g.yaml:2:23: cuda has no option 'device'; cuda takes: kv, layout",
    ]


def test_what_was_asked_for_is_not_left_out_silently(tiny_folder):
    """Where no GPU is, `auto` with an option of cuda says so; it does not run without the option."""
    try:
        open_backend("cuda")
    except BackendMissing:
        graph = read("backend: {kv: q8}", weights=str(tiny_folder))
        with pytest.raises(BackendMissing, match=r"(?s)cuda: .*portable: has no option kv"):
            build(graph)
    else:
        pytest.skip("here is a GPU")


def test_the_command_line_takes_them(capsys):
    assert main(["validate", "file", "--backend", "cuda", "--set", "backend.kv=q8"]) == 0
    assert main(["validate", "file", "--backend", "portable", "--set", "backend.kv=q8"]) == 2
    assert f"portable has no option 'kv'; {having('kv')}" in capsys.readouterr().err


def test_the_schema_knows_them():
    backend = json.loads(json.dumps(graph_schema()["properties"]["backend"]))
    name, mapping = backend["anyOf"]
    assert [form.get("const") for form in name["anyOf"]] == ["auto", *BACKENDS, None]
    assert name["default"] == "auto"
    assert {"const": "q8"} in mapping["properties"]["kv"]["anyOf"] and not mapping["additionalProperties"]


def test_a_backend_explains_itself():
    assert "\nbackends\n" in listing()
    page = explain("cuda")
    assert "    kv: 'f16' or 'q8'; default f16" in page and "device:" not in page.partition("options:")[2]
    assert "no options" in explain("portable")
