"""`use`, `params`, `$name`, `${NAME}` and where relative paths lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import GraphError
from pipeline.graph import Graph, load_graph, parse_graph

MODEL = """\
clock: 16000
params:
  weights: {type: path, default: "${MODEL_DIR:-models/small}", help: a folder}
  delay: {type: duration, default: 480ms}
weights: $weights
chain:
  - pad: {delay: $delay}
  - mel
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "graphs" / "models" / "small").mkdir(parents=True)
    (tmp_path / "graphs" / "model.yaml").write_text(MODEL)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "graphs"


def load(folder: Path, text: str, **how) -> Graph:
    (folder / "top.yaml").write_text(text)
    return load_graph(folder / "top.yaml", environ=how.pop("environ", {}), **how)


def faults(folder: Path, text: str, **how) -> str:
    with pytest.raises(GraphError) as caught:
        load(folder, text, **how)
    return str(caught.value)


def test_a_used_file_brings_its_chain_clock_weights_and_params(folder):
    graph = load(folder, "use: model.yaml\nsink: {wav: {path: a.wav, from: pad}}\n")
    assert [(node.name, node.upstream) for node in graph.nodes] == [("pad", "source"), ("mel", "pad")]
    assert (graph.clock, graph.weights) == (16000, str(folder / "models" / "small"))
    assert {name: param.value for name, param in graph.params.items()} == {
        "weights": str(folder / "models" / "small"), "delay": 480.0,
    }  # fmt: skip
    assert graph.node("pad").mark.file.endswith("model.yaml")


def test_a_chain_after_use_goes_on_where_the_used_one_ends(folder):
    graph = load(folder, "use: model.yaml\nchain: [voxtral.encoder]\n")
    assert graph.nodes[-1].upstream == "mel"
    assert graph.nodes[-1].weights == str(folder / "models" / "small")


def test_params_go_through_every_level_of_use(folder):
    (folder / "middle.yaml").write_text("use: model.yaml\n")
    top = "use: middle.yaml\n"
    assert load(folder, top, params={"delay": "960ms"}).node("pad").options == {"delay_ms": 960.0}
    fixed = "use: {model.yaml: {delay: 240ms}}\n"
    assert load(folder, fixed).node("pad").options == {"delay_ms": 240.0}
    assert "delay" not in load(folder, fixed).params
    own = "use: model.yaml\nparams: {delay: {type: duration, default: 1s}}\n"
    assert load(folder, own).node("pad").options == {"delay_ms": 1000.0}
    assert load(folder, own, params={"delay": "80ms"}).node("pad").options == {"delay_ms": 80.0}


def test_several_used_files_are_branches_from_the_source(folder):
    text = "use: [{model.yaml: {as: fast, delay: 80ms}}, model.yaml, model.yaml]\n"
    graph = load(folder, text, params={"delay": "960ms"})
    assert [(node.name, node.upstream) for node in graph.nodes] == [
        ("fast.pad", "source"), ("fast.mel", "fast.pad"),
        ("model.pad", "source"), ("model.mel", "model.pad"),
        ("model-2.pad", "source"), ("model-2.mel", "model-2.pad"),
    ]  # fmt: skip
    assert [node.options.get("delay_ms") for node in graph.nodes[::2]] == [80.0, 960.0, 960.0]
    assert "rows end at fast.mel, model.mel" in faults(folder, "use: [{model.yaml: {as: fast}}, model.yaml]\n"
                                                       "chain: [voxtral.encoder]")  # fmt: skip


def test_branches_keep_weights_of_their_own(folder):
    (folder / "models" / "large").mkdir()
    text = "use: [{model.yaml: {as: a, weights: models/large}}, {model.yaml: {as: b}}]\n"
    graph = load(folder, text)
    assert [Path(node.weights or "").name for node in graph.nodes] == ["large", "large", "small", "small"]
    graph = load(folder, text + "weights: models/small\n")
    assert {Path(node.weights or "").name for node in graph.nodes} == {"small"}


def test_two_used_files_may_not_both_bring_a_source(folder):
    (folder / "mic.yaml").write_text("use: model.yaml\nsource: mic\n")
    (folder / "talk.yaml").write_text("use: model.yaml\nsource: {file: {path: a.wav}}\n")
    assert "two used files bring source:" in faults(folder, "use: [mic.yaml, talk.yaml]")
    graph = load(folder, "use: [mic.yaml, talk.yaml]\nsource: {file: {path: b.wav}}\n")
    assert graph.source and graph.source.options == {"path": "b.wav"}


def test_a_circle_of_files_is_shown(folder):
    (folder / "a.yaml").write_text("use: b.yaml\n")
    (folder / "b.yaml").write_text("use: top.yaml\n")
    assert "in a circle: top.yaml -> a.yaml -> b.yaml -> top.yaml" in faults(folder, "use: a.yaml")
    assert "in a circle: top.yaml -> top.yaml" in faults(folder, "use: top.yaml")


def test_files_that_double_at_every_level_are_bounded(folder):
    for level in range(20):
        (folder / f"l{level}.yaml").write_text(f"use: [l{level + 1}.yaml, l{level + 1}.yaml]\n")
    (folder / "l20.yaml").write_text("chain: [mel]\n")
    assert "more than 64 files are used" in faults(folder, "use: l0.yaml")


def test_a_graph_elsewhere_may_use_the_installed_chains(folder):
    graph = load(folder, "use: voxtral.yaml\n")
    assert graph.nodes[-1].stage == "voxtral.text"
    assert "there is no 'voxtra.yaml' beside this file" in faults(folder, "use: voxtra.yaml")


def test_relative_paths_are_taken_from_here_then_from_beside_the_file(folder):
    assert load(folder, "use: model.yaml\nweights: models/none\n").weights == "models/none"
    Path("models/small").mkdir(parents=True)
    assert load(folder, "use: model.yaml\n").weights == "models/small"
    (folder / "a.wav").touch()
    ends = "source: {file: {path: a.wav}}\nsink: {lines: {path: a.wav}}\n"
    graph = load(folder, "use: model.yaml\n" + ends)
    assert graph.source and graph.source.options == {"path": str(folder / "a.wav")}
    assert graph.sinks[0].options == {"path": "a.wav"}  # a sink never writes beside the graph by accident


def test_a_path_from_the_command_line_is_never_looked_for_beside_the_file(folder):
    assert load(folder, "use: model.yaml\n", params={"weights": "models/small"}).weights == "models/small"


def test_the_environment_is_read_where_asked_for(folder):
    environ = {"MODEL_DIR": "/else/where", "LANES": "3", "OFF": "off", "EMPTY": ""}
    text = 'use: model.yaml\nlanes: {count: "${LANES:-8}", wait: "${WAIT:-20ms}"}\n'
    graph = load(folder, text, environ=environ)
    assert (graph.weights, graph.lanes.count, graph.lanes.wait_ms) == ("/else/where", 3, 20.0)
    ends = 'use: model.yaml\nsink: {lines: {path: "${EMPTY:-a}-${OFF}-$$5-${LANES}"}}\n'
    assert load(folder, ends, environ=environ).sinks[0].options == {"path": "a-off-$5-3"}
    assert "NOPE is not in the environment" in faults(folder, 'use: model.yaml\nbackend: "${NOPE}"')
    assert "${ opens no variable" in faults(folder, 'use: model.yaml\nbackend: "${A:-${B}}"')


@pytest.mark.parametrize(
    ("declaration", "given", "says"),
    [
        ("{type: duration, default: 480}", {}, "parameter 'x': expected a duration with its unit"),
        ("{type: durations}", {}, "'x' has no known type, found 'durations'; did you mean 'duration'?"),
        ("{type: int}", {}, "parameter 'x' has no default and no value; give it with --x"),
        ("{type: int, default: 3}", {"x": "4.5"}, "--x: parameter 'x': expected a whole number, found '4.5'"),
        ("{type: int, default: 3}", {"y": "4"}, "--y: this graph has no such parameter"),
        ("{type: choice, default: c, choices: [a, b]}", {}, "expected 'a' or 'b', found 'c'"),
        ("{type: choice, default: a}", {}, "type: choice goes with choices: [a, b]"),
        ("{type: int, default: 3, hlep: x}", {}, "parameter 'x' has no 'hlep'; did you mean 'help'?"),
        ("3", {}, "parameter 'x' needs {type: ..., default: ...}"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(folder, declaration, given, says):
    assert says in faults(folder, f"chain: [mel]\nparams: {{x: {declaration}}}\n", params=given)


def test_an_unknown_reference_is_refused(folder):
    text = "chain: [mel: {mels: $mells}]\nparams: {mels: {type: int, default: 128}}\n"
    assert "no parameter is called 'mells'; did you mean 'mels'?" in faults(folder, text)
    assert "parameter 'dely'; did you mean 'delay'?" in faults(folder, "use: {model.yaml: {dely: 80ms}}")
    assert "this file declares no params" in faults(folder, "chain: [mel: {mels: $x}]")


def test_choices_and_booleans_read_as_words(folder):
    level = "{type: choice, choices: ['off', whole], default: off}"
    text = f"chain: [normalize: {{scope: $level}}]\nparams: {{level: {level}}}"
    assert load(folder, text).nodes[0].options == {"scope": "off"}
    assert load(folder, text, params={"level": "whole"}).nodes[0].options == {"scope": "whole"}


def test_text_needs_no_folder():
    assert parse_graph("use: voxtral.yaml", environ={}).nodes[-1].name == "text"
