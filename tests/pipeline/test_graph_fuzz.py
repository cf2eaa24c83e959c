"""Whatever stands in a graph file, reading it gives a graph or a `GraphError`, and nothing else ever."""

from __future__ import annotations

import json
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import GraphError
from pipeline.graph import parse_graph
from pipeline.plugs import check_ports
from pipeline.tools.draw import dot, mermaid

KEYS = ("use", "clock", "params", "weights", "backend", "source", "sink", "sinks", "lanes")
WORDS = (
    *KEYS, "chain", "count", "wait", "pad", "mel", "resample", "normalize", "voxtral.encoder",
    "voxtral.decoder", "voxtral.text", "left", "to", "as", "from", "delay", "file", "mic", "lines", "wav",
    "path", "block", "type", "default", "choices", "duration", "voxtral.yaml", "$delay", "${HOME:-x}", "${",
    "$$", "80ms", "16kHz", "json:JSONDecoder", "off", "a.b",
)  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(WORDS), st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)
)
NAMES = st.text(max_size=6)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(WORDS) | NAMES, inner, max_size=4)
    ),
    max_leaves=25,
)
GRAPHS = st.fixed_dictionaries({"chain": TREES}, optional=dict.fromkeys(KEYS, TREES))
SIGNS = string.ascii_lowercase + string.digits + "-?:,[]{}#&*!|>'\"%@`$ \t\n\\~<.=é\u2028\U0001f600"
OVERRIDES = st.one_of(
    st.text(max_size=12),
    st.builds(lambda node, name, value: f"{node}.{name}={value}", *[st.sampled_from(WORDS)] * 2, SCALARS),
)
PARAMS = st.dictionaries(st.sampled_from(["delay", "weights", "normalize", "x"]), NAMES, max_size=3)


def survives(text: str, sets: tuple[str, ...] = (), params: dict[str, str] | None = None) -> None:
    try:
        graph = parse_graph(text, "g.yaml", sets=sets, params=params, environ={"HOME": "/h"})
    except GraphError as fault:
        assert fault.complaints and all(line and "\n" not in line for line in fault.complaints)
        return
    assert mermaid(graph) and dot(graph)
    try:
        check_ports(graph)
    except GraphError as fault:
        assert fault.complaints


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=SIGNS) | st.text())
def test_any_text_is_a_graph_or_a_graph_error(text):
    survives(text)
    survives("chain: [mel]\n" + text)


@settings(max_examples=50, deadline=None)
@given(GRAPHS)
def test_any_structure_is_a_graph_or_a_graph_error(tree):
    survives(json.dumps(tree))


@settings(max_examples=50, deadline=None)
@given(st.lists(OVERRIDES, max_size=3))
def test_any_override_is_a_graph_or_a_graph_error(sets):
    survives("use: voxtral.yaml\nsource: mic\nsink: lines\n", sets=tuple(sets))


@settings(max_examples=30, deadline=None)
@given(PARAMS)
def test_any_parameter_is_a_graph_or_a_graph_error(params):
    survives("use: voxtral.yaml\n", params=params)
