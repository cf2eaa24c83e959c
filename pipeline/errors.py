"""What the runtime may raise, and the exit code each becomes on the command line.

PipelineError         1
├── GraphError        2   a graph, an option or a plug is wrong; carries every complaint
├── SourceError       1   a file, device or stream cannot be read
├── SinkError         1   a sink cannot be written
│   └── SinkClosed    0   whoever read the sink has gone (`| head`): the run ends without complaint
├── Overrun           1   a live source ran ahead of the engine
├── Busy              1   no lane is free
└── WeightsMissing    3   the weights a graph names are not there
"""


class PipelineError(Exception):
    """Root of everything raised by the runtime.

    `transcript` is what had been recognised, where the failure ended a transcription.
    """

    exit_code = 1
    transcript: str = ""


class GraphError(PipelineError):
    """A graph, an option or a plug is wrong.

    `complaints` holds every fault found, each `file:line:col: message`; `str()` joins them by newlines.
    """

    exit_code = 2

    def __init__(self, *complaints: str):
        super().__init__("\n".join(complaints))
        self.complaints = complaints


class SourceError(PipelineError):
    """A file, device or stream cannot be read."""


class SinkError(PipelineError):
    """A sink cannot be written."""


class SinkClosed(SinkError):
    """Whoever read the sink has gone; what it wanted it has, so this is no failure of the run."""

    exit_code = 0


class Overrun(PipelineError):
    """A live source ran ahead of the engine and its graph says `overrun: error`."""


class Busy(PipelineError):
    """No lane is free."""


class WeightsMissing(PipelineError):
    """The weights a graph names are not there; the message says which files to fetch, and where they go."""

    exit_code = 3
