"""A graph as a picture in text, mermaid or dot, with what flows along each arrow and how fast."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import GraphError
from pipeline.graph import Graph
from pipeline.plugs import check_ports
from stages.stage import Port


def mermaid(graph: Graph) -> str:
    """`flowchart LR` of sources, stages and sinks. A graph whose plugs do not fit is drawn without rates."""
    boxes = {name: f"n{number}" for number, (name, _) in enumerate(_boxes(graph))}
    lines = ["flowchart LR"]
    for name, label in _boxes(graph):
        left, right = ("([", "])") if name.startswith("end ") else ("[", "]")
        lines.append(f'  {boxes[name]}{left}"{_escaped(label, "#quot;")}"{right}')
    for above, below, label in _arrows(graph):
        arrow = f'-->|"{label}"|' if label else "-->"
        lines.append(f"  {boxes[above]} {arrow} {boxes[below]}")
    return "\n".join(lines)


def dot(graph: Graph) -> str:
    """The same for graphviz."""
    lines = [f'digraph "{_escaped(graph.name, chr(92) + chr(34))}" {{', "  rankdir=LR; node [shape=box];"]
    boxes = {name: f"n{number}" for number, (name, _) in enumerate(_boxes(graph))}
    for name, label in _boxes(graph):
        shape = ", shape=oval" if name.startswith("end ") else ""
        lines.append(f'  {boxes[name]} [label="{_escaped(label, chr(92) + chr(34))}"{shape}];')
    for above, below, label in _arrows(graph):
        lines.append(f"  {boxes[above]} -> {boxes[below]}" + (f' [label="{label}"];' if label else ";"))
    return "\n".join([*lines, "}"])


def rate(port: Port) -> str:
    """What flows through a plug: "mel 100 Hz", "pcm 16 kHz"."""
    hertz = port.rate / port.hop
    return f"{port.kind} {hertz / 1000:g} kHz" if hertz >= 1000 else f"{port.kind} {hertz:g} Hz"


def _boxes(graph: Graph) -> Iterator[tuple[str, str]]:
    yield "end source", graph.source.kind if graph.source else "source"
    for node in graph.nodes:
        yield node.name, node.stage if node.stage.endswith(node.name) else f"{node.name}: {node.stage}"
    for sink in graph.sinks:
        yield f"end {sink.name}", sink.kind if sink.kind == sink.name else f"{sink.name}: {sink.kind}"


def _arrows(graph: Graph) -> Iterator[tuple[str, str, str]]:
    try:
        ports = check_ports(graph)
    except GraphError:
        ports = {}
    names = [(node.upstream, node.name) for node in graph.nodes]
    names += [(sink.upstream, f"end {sink.name}") for sink in graph.sinks]
    for above, below in names:
        label = rate(ports[above]) if above in ports and above != "source" else ""
        yield "end source" if above == "source" else above, below, label


def _escaped(text: str, quote: str) -> str:
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    return printable.replace("\\", "/").replace('"', quote)
