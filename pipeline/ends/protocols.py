"""What a source and a sink are, for those who write their own: `Run.batch` and `Engine.open` take any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from stages.packet import Packet
from stages.stage import Port


class Source(Protocol):
    """Where audio comes from; used once.

    label : what complaints and figures call it

    A source may also have: `overrun` ("drop" or "error" where it cannot wait; else it waits) and `window_s`
    (seconds of audio that may wait for the engine, by default 20); `lost` (samples it dropped itself);
    `notes` (what the user should know at the end).
    """

    @property
    def label(self) -> str: ...

    def open(self) -> Port:
        """Get ready; called on the engine's thread, before anything else. Raises `SourceError`."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Mono f32 blocks [samples], any number in each; read on a thread of its own.

        An error ends the audio: what came before it is still recognised.
        """
        ...

    def close(self) -> None:
        """Let whoever waits in `blocks` see the end; called from any thread, and perhaps more than once."""
        ...


class Sink(Protocol):
    """Where answers go, one call at a time. A sink that raises is let go, and the others write on.

    A sink may also have `meter(level_db, lag_s)`, called for every block that goes in.
    """

    def open(self, port: Port) -> None:
        """`port` is what the node gives that is read from. Raises `SinkError`."""
        ...

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        """`emitted_s` is how many seconds of audio had gone in by now."""
        ...

    def cut(self, at: int) -> None:
        """All before sample `at` is final, and a new utterance begins."""
        ...

    def close(self) -> None:
        """Nothing more will come; perhaps called more than once, and without `open` where that failed."""
        ...
