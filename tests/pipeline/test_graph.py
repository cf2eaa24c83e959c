"""Graphs: what a file comes to, and every way it can be wrong, each fault with its place and its cure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.errors import GraphError
from pipeline.graph import LaneOptions, load_graph, parse_graph

CHAIN = """\
clock: 16000
chain:
  - resample: {to: 16kHz}
  - pad: {left: 2560ms, right: 0.88s}
  - mel
"""
NAMES = ("batch", "file", "mic", "voxtral")


def faults(text: str, **how) -> list[str]:
    with pytest.raises(GraphError) as caught:
        parse_graph(text, "g.yaml", **how)
    assert all(len(line) < 400 and "\n" not in line for line in caught.value.complaints)
    return list(caught.value.complaints)


def test_a_row_of_stages_becomes_nodes_with_constructor_keywords():
    graph = parse_graph(CHAIN)
    assert [(node.stage, node.name, node.upstream) for node in graph.nodes] == [
        ("resample", "resample", "source"), ("pad", "pad", "resample"), ("mel", "mel", "pad"),
    ]  # fmt: skip
    pad = {"left_ms": 2560.0, "right_ms": 880.0}
    assert [node.options for node in graph.nodes] == [{"to": 16000}, pad, {}]
    assert str(graph.node("pad").mark) == "graph:4:5"
    assert (graph.clock, graph.backend, graph.lanes, graph.weights) == (16000, "auto", LaneOptions(), None)


def test_ends_lanes_and_backend_are_read():
    graph = parse_graph(CHAIN + "source: {mic: {block: 80ms, window: 2s, device: 3}}\n"
                        "sink: lines\nlanes: {count: 4, wait: 20ms}\nbackend: portable\n")  # fmt: skip
    assert graph.source and graph.source.options == {"block_ms": 80.0, "window_s": 2.0, "device": 3}
    assert [(sink.kind, sink.upstream) for sink in graph.sinks] == [("lines", "mel")]
    assert graph.lanes == LaneOptions(4, 20.0)
    assert graph.backend == "portable"


def test_a_fork_costs_one_word():
    fork = "  - mel: {as: again, from: resample}\n"
    sinks = "sinks: [wav: {path: a.wav, from: resample}, lines: {from: again}, lines: {as: two, from: mel}]\n"
    graph = parse_graph(CHAIN + fork + sinks)
    assert graph.node("again").upstream == "resample"
    assert [node.name for node in graph.tails] == ["mel", "again"]
    assert [(sink.name, sink.upstream) for sink in graph.sinks] == [
        ("wav", "resample"), ("lines", "again"), ("two", "mel"),
    ]  # fmt: skip


def test_where_rows_fork_a_sink_must_say_which():
    found = faults(CHAIN + "  - mel: {as: again, from: resample}\nsink: lines\n")
    assert found == ["g.yaml:7:7: rows end at mel, again; say which with from:"]


def test_every_fault_is_named_at_once_with_its_place():
    found = faults(
        "chian: []\n"
        "chain:\n"
        "  - pad: {left: 2560, righ: 880ms}\n"
        "  - mell\n"
        "  - mel: {mels: yes}\n"
        "source: {file: {pat: a.wav}}\n"
        "lanes: {count: 0}\n"
    )
    assert found == [
        "g.yaml:1:1: unknown key 'chian'; did you mean 'chain'?",
        "g.yaml:3:17: pad.left: expected a duration with its unit, such as 80ms or 1.5s, found '2560'",
        "g.yaml:3:23: pad has no option 'righ'; did you mean 'right'?",
        "g.yaml:4:5: no stage is called 'mell'; did you mean 'mel'?",
        "g.yaml:5:17: mel.mels: expected a whole number, found 'yes'",
        "g.yaml:6:10: file needs 'path'; add path: text or a path",
        "g.yaml:6:17: file has no option 'pat'; did you mean 'path'?",
        "g.yaml:7:16: lanes: count is 0, expected 1 to 4096",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "g.yaml:1:1: expected a mapping such as chain: [...], found nothing"),
        ("- mel", "g.yaml:1:1: expected a mapping such as chain: [...], found a list"),
        ("clock: 16000", "g.yaml:1:1: a graph needs chain: or use:"),
        ("chain: mel", "g.yaml:1:1: chain is a list of stages, found 'mel'"),
        ("chain: [mel: {}, {pad: , mel: }]", "g.yaml:1:18: stage: expected a stage's name"),
        ("chain:\n- mel:\n  mels: 3", "is an option indented too little?"),
        ("chain: [3]", "g.yaml:1:9: stage: expected a stage's name"),
        ("chain: [mel: 3]", "g.yaml:1:14: options of 'mel' are a mapping, found '3'"),
        ("chain: [mel, mel]", "g.yaml:1:14: two nodes are called 'mel'; name this one with as:"),
        ("chain: [pad, mel: {from: paddle}]", "g.yaml:1:26: from: no node above is called 'paddle'; did"),
        ("chain: [mel: {from: pad}, pad]", "g.yaml:1:21: from: no node above is called 'pad'"),
        ("chain: [mel: {as: source}]", "g.yaml:1:19: 'source' cannot name a node"),
        ("chain: [mel: {as: a.b}]", "g.yaml:1:19: 'a.b' cannot name a node"),
        ("chain: [mel: {as: [a]}]", "g.yaml:1:19: expected a name, found a list"),
        ("chain: [mel]\nsource: fil", "g.yaml:2:9: no source is called 'fil'; did you mean 'file'?"),
        ("chain: [mel]\nsource: {mic: {as: a}}", "g.yaml:2:20: a source has no from: and no as:"),
        ("chain: [mel]\nsource: [mic]", "g.yaml:2:9: source: expected a source's name"),
        ("chain: [mel]\nsource: memory", "g.yaml:2:9: memory needs 'samples'; only a program can give it"),
        ("chain: [mel]\nsink: [lines]", "g.yaml:2:1: sink takes one; a list is spelled sinks:"),
        ("chain: [mel]\nsink: lines\nsinks: [lines]", "g.yaml:3:1: give sink: or sinks:, not both"),
        ("chain: [mel]\nsinks: [lines, lines]", "g.yaml:2:16: two sinks are called 'lines'"),
        ("chain: [mel]\nclock: 16kHz2", "g.yaml:2:8: clock: expected a rate"),
        ("chain: [mel]\nclock: [1]", "g.yaml:2:8: clock is one value, found a list"),
        ("chain: [mel]\nlanes: 3", "g.yaml:2:8: lanes is {count: 4, wait: 20ms}, found '3'"),
        ("chain: [mel]\nlanes: {wait: 20}", "g.yaml:2:15: lanes.wait: expected a duration with its unit"),
        ("chain: [mel]\nweights: 3", "g.yaml:2:10: weights is a path, found '3'"),
        ("chain: [mel]\nbackend: 3", "g.yaml:2:10: backend: expected 'auto' or 'portable'"),
        ("chain: [mel]\nsink: {lines: {path: 12}}", "g.yaml:2:22: lines.path: expected text or a path"),
        ("chain: [pad: {left: -1ms}]", "g.yaml:1:21: pad.left: expected a duration from 0 to 8760h"),
        ("chain: [mel: {ceiling: .nan}]", "g.yaml:1:24: mel.ceiling: expected a number, found '.nan'"),
        ("chain: [mel: {mels: 1.5}]", "g.yaml:1:21: mel.mels: expected a whole number, found '1.5'"),
        ("chain: [mel: {mels: true}]", "g.yaml:1:21: mel.mels: expected a whole number, found 'true'"),
        ("chain: [mel: {upstream: 1}]", "g.yaml:1:15: mel has no option 'upstream'"),
        ("chain: [voxtral.encoder: {checkpoint: 1}]", "g.yaml:1:27: encoder has no option 'checkpoint'"),
    ],
)
def test_each_fault_says_what_was_expected(text, says):
    assert any(says in fault for fault in faults(text)), faults(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_graphs_that_ship_are_read_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph = load_graph(name, environ={})
    assert graph.clock == 16000
    assert [node.stage for node in graph.nodes][-5:] == [
        "mel", "voxtral.encoder", "voxtral.adapter", "voxtral.decoder", "voxtral.text",
    ]  # fmt: skip
    assert graph.weights and Path(graph.weights).is_absolute()
    assert graph.node("decoder").options == {"delay_ms": 480.0}


def test_a_graph_that_is_not_there_is_named_with_the_nearest_one(tmp_path):
    with pytest.raises(GraphError, match="did you mean 'mic'"):
        load_graph("mci")
    with pytest.raises(GraphError, match="there is no such file"):
        load_graph(tmp_path / "no.yaml")
    with pytest.raises(GraphError, match="there is no such file"):
        load_graph("a\0b")
    (tmp_path / "binary.yaml").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(GraphError, match=r"is not UTF-8 \(byte 4\)"):
        load_graph(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(GraphError, match="is larger than"):
        load_graph(tmp_path / "large.yaml")


def test_a_stage_of_ones_own_is_imported_only_where_allowed(tmp_path, monkeypatch):
    (tmp_path / "their_stages.py").write_text(
        "from stages import Mel\n"
        "class Mine(Mel):\n"
        "    def __init__(self, upstream, *, loud=False, name: str = 'x'):\n"
        "        super().__init__(upstream)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "chain: [their_stages:Mine: {loud: true, name: '3'}]"
    assert "allow it with --allow-import" in faults(text)[0]
    assert "their_stages" not in sys.modules
    graph = parse_graph(text, allow_import=True)
    assert (graph.nodes[0].name, graph.nodes[0].options) == ("Mine", {"loud": True, "name": "3"})


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("no_such_module:Thing", "No module named"),
        ("json:nothing", "has no attribute"),
        ("json:dumps", "expected a class"),
        ("json:JSONDecoder", "has no open, step, flush; is it a stage?"),
        (":", "cannot be imported"),
        ("..a:B", "cannot be imported"),
    ],
)
def test_a_place_that_holds_no_stage_is_refused(place, says):
    assert says in faults(f"chain: ['{place}']", allow_import=True)[0]


def test_a_module_that_raises_while_it_loads_is_a_complaint(tmp_path, monkeypatch):
    (tmp_path / "their_bomb.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "ZeroDivisionError" in faults("chain: [their_bomb:Stage]", allow_import=True)[0]
