"""The runtime: YAML graphs, Rx, sources and sinks, sessions and lanes, the command line.

    print(transcribe("talk.flac"))
    with load("mic") as graph:
        for text in graph: print(text, end="", flush=True)
    samples.pipe(operator(Mel(pcm(16_000)))).subscribe(plot)
"""

from pipeline.errors import (
    Busy,
    GraphError,
    Overrun,
    PipelineError,
    SinkClosed,
    SinkError,
    SourceError,
    WeightsMissing,
)
from pipeline.graph import Graph, load_graph, parse_graph
from pipeline.operators import operator
from pipeline.run import Run, Transcript, load, transcribe

__all__ = [
    "Busy", "Graph", "GraphError", "Overrun", "PipelineError", "Run", "SinkClosed", "SinkError",
    "SourceError", "Transcript", "WeightsMissing", "load", "load_graph", "operator", "parse_graph",
    "transcribe",
]
