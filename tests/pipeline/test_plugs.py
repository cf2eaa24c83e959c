"""Plugs are checked without weights, and a misfit names what is missing."""

from __future__ import annotations

import pytest

from pipeline.errors import GraphError
from pipeline.graph import load_graph, parse_graph
from pipeline.plugs import check_ports

MODEL = "voxtral.encoder, voxtral.adapter, voxtral.decoder, voxtral.text"


def fault(text: str, rate: int | None = None) -> str:
    with pytest.raises(GraphError) as caught:
        check_ports(parse_graph(text, "g.yaml", environ={}), rate)
    return str(caught.value)


@pytest.mark.parametrize("rate", [None, 8000, 44_100, 48_000])
def test_the_shipped_chain_fits_at_every_rate_and_ends_at_12_5_hertz(rate):
    ports = check_ports(load_graph("voxtral", environ={}), rate)
    assert ports["text"].rate / ports["text"].hop == 12.5
    hops = [ports[name].hop for name in ("pad", "mel", "encoder", "adapter", "decoder")]
    assert hops == [1, 160, 320, 1280, 1280]


def test_a_missing_stage_is_guessed():
    takes = "voxtral.encoder takes mel (hop 160), but pad gives pcm (hop 1)"
    assert fault(f"chain: [pad, {MODEL}]") == f'g.yaml:1:14: {takes}; is "mel" missing before it?'
    assert 'is "resample" missing before it?' in fault("chain: [mel]", 48_000)
    skipped = fault("chain: [mel, voxtral.encoder, voxtral.decoder]")
    assert 'is "voxtral.adapter" missing before it?' in skipped
    assert "missing" not in fault("chain: [mel, pad]")


def test_an_option_that_a_stage_refuses_is_named_with_its_place():
    assert fault("chain:\n  - pad: {left: 33ms}").startswith("g.yaml:2:5: pad: left is 33 ms")


def test_a_row_on_another_clock_than_the_graphs_is_refused():
    other = fault("clock: 16000\nchain: [resample: {to: 8kHz}]")
    assert "counted at 8000 Hz, but the graph says clock: 16000" in other


def test_a_wrong_product_of_hops_is_refused(tmp_path, monkeypatch):
    (tmp_path / "their_halving.py").write_text(
        "class Halving:\n"
        "    TAKES, GIVES = ('frames', 1280), ('tokens', 2560)\n"
        "    def __init__(self, upstream, checkpoint): ...\n"
        "    open = step = flush = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    chain = "chain: [mel, voxtral.encoder, voxtral.adapter, their_halving:Halving]"
    with pytest.raises(GraphError, match=r"16000 Hz / 2560 samples = 6\.25 tokens a second, but the model"):
        check_ports(parse_graph(chain, allow_import=True))


def test_a_stage_that_waits_for_the_end_is_refused_behind_a_live_source():
    whole = "chain: [normalize: {scope: whole}]\n"
    assert "take scope: running" in fault(whole + "source: mic\n")
    assert check_ports(parse_graph(whole + "source: {file: {path: a.wav}}\n"))


def test_a_sink_takes_only_its_own_kind():
    text = f"chain: [mel, {MODEL}]\n"
    assert "wav takes pcm, but text gives text (hop 1280)" in fault(text + "sink: {wav: {path: a.wav}}")
    assert "lines takes text, but mel gives mel (hop 160)" in fault(text + "sink: {lines: {from: mel}}")
    assert check_ports(parse_graph(text + "sink: {wav: {path: a.wav, from: source}}"))


def test_a_stage_that_says_nothing_about_its_plugs_is_left_to_build(tmp_path, monkeypatch):
    (tmp_path / "their_silence.py").write_text(
        "class Silent:\n    def __init__(self, upstream, backend): ...\n    open = step = flush = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ports = check_ports(parse_graph("chain: [mel, their_silence:Silent, pad]", allow_import=True))
    assert list(ports) == ["source", "mel"]
