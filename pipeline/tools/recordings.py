"""Many recordings through one graph: what `transcribe` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ends.file import FileSource
from pipeline.graph import Graph
from stages import Port


class Recording:
    """A source that remembers how far it was heard.

    label : what it is called in answers and complaints
    heard_s : seconds of audio read so far
    complete : whether it was read to its end
    opened, refused : whether it could be opened, or not; neither is true of one that was never tried
    """

    live = False

    def __init__(self, source: FileSource, label: str):
        self.source, self.label = source, label
        self.complete = self.opened = self.refused = False
        self._rate = self._samples = 0
        self._stopped = False

    @property
    def heard_s(self) -> float:
        return self._samples / self._rate if self._rate else 0.0

    @property
    def notes(self) -> list[str]:
        """What the reader wants known, such as samples it had to replace."""
        return self.source.notes

    def open(self) -> Port:
        try:
            port = self.source.open()
        except Exception:
            self.refused = True
            raise
        self._rate, self.opened = port.rate, True
        return port

    def blocks(self) -> Iterator[np.ndarray]:
        for block in self.source.blocks():
            self._samples += len(block)
            yield block
        self.complete = not self._stopped

    def close(self) -> None:
        self._stopped = True
        self.source.close()


def recording(graph: Graph, path: str | Path, label: str | None = None) -> Recording:
    """The recording at `path`, read as the graph's own source would be if that is a file."""
    options: dict[str, Any] = {}
    if graph.source is not None and graph.source.kind == "file":
        options = {name: value for name, value in graph.source.options.items() if name != "path"}
    source = FileSource(path, **options)
    return Recording(source, label or source.label)


def length_s(graph: Graph, path: str | Path) -> float | None:
    """Seconds of audio that a file's header promises; None where it does not say or cannot be read."""
    if str(path) == "-" or not Path(path).is_file():
        return None
    source = recording(graph, path)
    try:
        source.open()
        return source.source.duration_s
    except Exception:  # whoever transcribes it will hear why
        return None
    finally:
        source.close()
