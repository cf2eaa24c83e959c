"""Text for a person at a terminal: the line that is still growing, a level meter and the lag beneath it.

What was said goes to standard output, all else to standard error: `run graphs/mic.yaml > talk.txt` keeps the
text and shows the meter, and a pipe gets what `lines` would give it.
"""

from __future__ import annotations

import sys
import threading

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text as Styled

from pipeline.ends.lines import Lines
from pipeline.ends.output import Output
from stages.packet import Packet
from stages.stage import Port

QUIET_DB = -60.0  # the left end of the meter
METER_CELLS = 16
LATE_S = 1.0  # a lag worth a colour


class Terminal:
    """Shows words as they are recognised; a line settles when it is full, at a cut and at the end.

    Raises
    ------
    SinkError    if standard output cannot be written
    SinkClosed   if its reader has gone
    """

    TAKES = "text"

    def __init__(self) -> None:
        self._lines = Lines()  # standard output where nobody watches it
        self._out = Output()  # and where somebody does
        self._watched = False
        self._live: Live | None = None
        self._console: Console | None = None
        self._growing = ""
        self._level_db, self._lag_s = QUIET_DB, 0.0
        self._lock = threading.RLock()  # `meter` and `write` may come from two threads

    def open(self, port: Port) -> None:
        self._lines.open(port)
        self._out.open()
        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self._console = console
            self._watched = sys.stdout.isatty()
            self._show()

    def write(self, packet: Packet, *, emitted_s: float | None = None) -> None:
        if not self._watched:
            self._lines.write(packet)
            return
        with self._lock:
            self._growing += "".join(piece.text for piece in packet.data)
            self._growing = self._growing.lstrip()
            self._settle_full_lines()
            self._show()

    def meter(self, level_db: float, lag_s: float) -> None:
        """How loud it is now, in dB of full scale, and how far the text is behind, in seconds."""
        with self._lock:
            self._level_db, self._lag_s = level_db, lag_s
            self._show()

    def cut(self, at: int) -> None:
        if not self._watched:
            self._lines.cut(at)
            return
        with self._lock:
            self._settle(self._growing)
            self._show()

    def close(self) -> None:
        with self._lock:
            console, self._console = self._console, None
            try:
                self._settle(self._growing)
            finally:
                self._hide()
                self._watched = self._watched and console is not None
                self._lines.close()

    def _settle_full_lines(self) -> None:
        console = self._console
        if console is None or cell_len(self._growing) < console.width:
            return
        *full, last = Styled(self._growing).wrap(console, max(1, console.width - 1))
        for line in full:
            self._settle(line.plain)
        self._growing = last.plain

    def _settle(self, line: str) -> None:
        """Write a line for good, where the growing one was."""
        self._growing = ""
        if line.strip():
            self._hide()
            self._out.write(line.rstrip() + "\n")

    def _show(self) -> None:
        if self._console is None:
            return
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._console.show_cursor(True)  # rich hides it; ours must survive even a killed run
        self._live.update(self._picture(self._console), refresh=True)

    def _hide(self) -> None:
        """Take the furniture away, so that standard output may use the place."""
        live, self._live = self._live, None
        if live is not None:
            live.update("")
            live.stop()

    def _picture(self, console: Console) -> Group:
        meter = Styled.assemble(*_meter(self._level_db, self._lag_s, plain=not _can_draw(console)))
        rows = [Styled(self._growing, style="bold"), meter] if self._growing else [meter]
        for row in rows:
            row.truncate(max(1, console.width - 1), overflow="crop")
        return Group(*rows)


def _meter(level_db: float, lag_s: float, *, plain: bool) -> list[tuple[str, str]]:
    """The furniture as (text, style) parts."""
    share = min(1.0, max(0.0, 1.0 - level_db / QUIET_DB)) if level_db > QUIET_DB else 0.0
    filled = round(share * METER_CELLS)
    full, empty = ("#", ".") if plain else ("█", "░")
    level = f"{max(level_db, QUIET_DB):4.0f} dB"
    style = "green" if share < 0.95 else "red"
    lag = (f"lag {lag_s:.1f} s", "yellow" if lag_s > LATE_S else "dim")
    return [(full * filled, style), (empty * (METER_CELLS - filled), "dim"), (f" {level}  ", "dim"), lag]


def _can_draw(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
