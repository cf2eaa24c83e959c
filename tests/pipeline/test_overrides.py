"""`--set` changes one leaf, and says so where it cannot."""

from __future__ import annotations

import pytest

from pipeline.errors import GraphError
from pipeline.graph import Graph, parse_graph

MIC = """\
params: {delay: {type: duration, default: 480ms}}
chain: [pad: {left: 1s, delay: $delay}, mel: {as: features}]
source: {mic: {block: 80ms, overrun: drop}}
sink: terminal
"""


def changed(*sets: str, text: str = MIC) -> Graph:
    return parse_graph(text, "g.yaml", sets=sets)


def fault(*sets: str, text: str = MIC) -> str:
    with pytest.raises(GraphError) as caught:
        changed(*sets, text=text)
    assert str(caught.value).startswith("--set "), "a fault of --set names it as its place"
    return str(caught.value)


def test_a_nodes_option_is_set_by_its_name_or_its_stage():
    graph = changed("pad.left=2s", "pad.right=80ms", "features.mels=80", "pad.delay=960ms", "pad.left=3s")
    assert graph.node("pad").options == {"left_ms": 3000.0, "right_ms": 80.0, "delay_ms": 960.0}
    assert graph.node("features").options == {"mels": 80}
    assert changed("mel.mels=80").node("features").options == {"mels": 80}


def test_an_option_of_the_graphs_own_source_joins_the_others():
    source = changed("source.mic.device=USB Audio", "source.mic.block=40ms").source
    assert source and source.options == {"block_ms": 40.0, "overrun": "drop", "device": "USB Audio"}


def test_naming_another_source_puts_it_in_place_with_its_own_defaults():
    source = changed("source.file.path=talk.wav", "source.file.block=37ms", "source.file.pace=8x").source
    assert source and (source.kind, source.options) == (
        "file", {"path": "talk.wav", "block_ms": 37.0, "pace": "8x"},
    )  # fmt: skip


def test_a_number_is_a_name_where_text_is_wanted():
    source = changed("source.file.path=2024", "source.file.channel=1").source
    assert source and source.options == {"path": "2024", "channel": 1}


def test_naming_another_sink_replaces_the_only_one():
    assert [(s.kind, s.upstream, s.options) for s in changed("sink.jsonl.path=out").sinks] == [
        ("jsonl", "features", {"path": "out"})
    ]
    assert [s.kind for s in changed("sink=lines").sinks] == ["lines"]
    two = MIC.replace("sink: terminal", "sinks: [terminal, lines: {as: log}]")
    assert changed("sink.log.path=a.txt", text=two).sinks[1].options == {"path": "a.txt"}
    several = "has several sinks and none is called 'jsonl'; it has: terminal, log"
    assert several in fault("sink=jsonl", text=two)


def test_words_at_the_top_are_set_as_they_are():
    graph = changed("weights=a.gguf", "backend=portable", "lanes.count=4", "lanes.wait=20ms")
    assert (graph.weights, graph.backend) == ("a.gguf", "portable")
    assert (graph.lanes.count, graph.lanes.wait_ms) == (4, 20.0)
    assert {node.weights for node in graph.nodes} == {"a.gguf"}


@pytest.mark.parametrize(
    ("one", "says"),
    [
        ("pad.left", "--set pad.left: expected node.option=value, as in pad.left=1s"),
        ("=3", "expected node.option=value"),
        ("left=3", "expected node.option=value"),
        ("pad.left=3", "--set pad.left=3: pad.left: expected a duration with its unit"),
        ("pad.lefft=3s", "pad has no option 'lefft'; did you mean 'left'?"),
        ("padd.left=3s", "no node is called 'padd'; did you mean 'pad'?"),
        ("delay=960ms", "'delay' is a parameter of the graph; give it as --delay 960ms"),
        ("source.block=37ms", "source options are set as source.mic.block=..."),
        ("source.fil.path=a", "no source is called 'fil'; did you mean 'file'?"),
        ("source.file.=a", "source options are set as source.mic.file"),
        ("sink.lnies.path=a", "no sink is called 'lnies'; did you mean 'lines'?"),
        ("lanes.cuont=3", "lanes has no option 'cuont'; did you mean 'count'?"),
        ("lanes.count=1.5", "lanes.count: expected a whole number, found '1.5'"),
        ("source=file", "file needs 'path'"),
        ("pad.left=\udcff\n", "pad.left: expected a duration"),
    ],
)
def test_what_cannot_be_set_says_why(one, says):
    assert says in fault(one)
