"""The terminal sink, watched through a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import IO

import pytest

from pipeline.ends.terminal import Terminal
from stages.packet import Packet, Span, Text
from stages.stage import Port

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are made here on POSIX only")

SENTENCE = " the quick brown fox jumps over the lazy dog and runs away from it"
Watched = Callable[..., tuple[str, str]]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def terminal(columns: int) -> Iterator[tuple[IO[str], list[str]]]:
    """A pseudo-terminal to write to, and what it has shown, complete once left."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[str] = []
    reader = threading.Thread(target=lambda: shown.append(_drained(ours)))
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as file:
        yield file, shown
    reader.join()


def speak(sink: Terminal, until: int = 99) -> None:
    """A sentence, a cut and a word; interrupted after `until` words."""
    sink.open(Port("text", 16_000, 1_280, 0))
    try:
        for n, word in enumerate(SENTENCE.split()):
            if n == until:
                raise KeyboardInterrupt
            sink.meter(-60.0 + 3 * n, 0.2 * n)
            sink.write(Packet([Text(f" {word}", Span(n, n + 1))], (Span(n, n + 1),)))
        sink.cut(20)
        sink.write(Packet([Text(" bye", Span(30, 31))], (Span(30, 31),)))
    finally:
        sink.close()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Speak at a terminal: what it shows, and what a pipe gets unless `both` outputs are the terminal."""

    def watch(columns: int, *, both: bool = True, term: str = "xterm", until: int = 99) -> tuple[str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))  # rich asks descriptors 0 to 2, which are not ours here
        monkeypatch.setenv("LINES", "24")
        monkeypatch.setenv("TERM", term)
        monkeypatch.delenv("NO_COLOR", raising=False)
        pipe = io.StringIO()
        with terminal(columns) as (file, shown):
            out = redirect_stdout(file if both else pipe)
            with out, redirect_stderr(file), suppress(KeyboardInterrupt):
                speak(Terminal(), until)
        return shown[0], pipe.getvalue()

    return watch


def _drained(descriptor: int) -> str:
    shown = b""
    try:
        while data := os.read(descriptor, 1 << 16):
            shown += data
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(descriptor)
    return shown.decode()


def screen(shown: str, columns: int) -> list[str]:
    """The lines left on a terminal after `shown`: the sequences rich uses, and wrapping at the edge."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", shown, re.S):
        if part == "\n":
            row += 1
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            count = int(re.sub(r"\D", "", part) or "1")
            if part.endswith("A"):
                row = max(0, row - count)
            elif part.endswith("K"):
                rows[row] = ""
        else:
            if column == columns:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]


@pytest.mark.parametrize("columns", [1, 7, 20, 40, 200])
def test_the_words_settle_and_the_furniture_goes(watched: Watched, columns: int) -> None:
    shown, _ = watched(columns)
    left = "".join(screen(shown, columns)).replace(" ", "")
    assert left == (SENTENCE + " bye").replace(" ", "")


def test_the_meter_and_the_lag_are_shown(watched: Watched) -> None:
    plain = ESCAPES.sub("", watched(60)[0])
    assert "█" in plain and "lag 0.2 s" in plain and "-57 dB" in plain


def test_the_cursor_is_left_visible(watched: Watched) -> None:
    shown, _ = watched(40)
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_an_interrupt_settles_what_is_known(watched: Watched) -> None:
    shown, _ = watched(80, until=4)
    assert screen(shown, 80) == ["the quick brown fox", ""]
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_a_pipe_gets_lines_and_the_terminal_the_furniture(watched: Watched) -> None:
    shown, piped = watched(60, both=False)
    assert piped == f"{SENTENCE.strip()}\nbye\n"
    assert "lag" in shown and "fox" not in shown


def test_a_dumb_terminal_gets_no_furniture(watched: Watched) -> None:
    shown, _ = watched(60, term="dumb")
    assert shown.replace("\r\n", "\n") == f"{SENTENCE.strip()}\nbye\n"


SHRINKING = f"""
import fcntl, struct, termios
from pipeline.ends.terminal import Terminal
from stages.packet import Packet, Span, Text
from stages.stage import Port
sink = Terminal()
sink.open(Port("text", 16000, 1280, 0))
for n, word in enumerate({SENTENCE!r}.split()):
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 3, max(12, 60 - 6 * n), 0, 0))
    sink.meter(-20.0, 0.0)
    sink.write(Packet([Text(" " + word, Span(n, n + 1))], (Span(n, n + 1),)))
sink.close()
"""


def test_a_shrinking_window_is_survived() -> None:
    with terminal(60) as (file, shown):
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        subprocess.run(
            [sys.executable, "-c", SHRINKING],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**environment, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
            check=True,
        )
    assert screen(shown[0], 60)[-2].endswith("it")


def test_without_a_terminal_it_is_lines() -> None:
    with redirect_stdout(io.StringIO()) as out:
        sink = Terminal()
        sink.open(Port("text", 16_000, 1_280, 0))
        sink.meter(-20.0, 0.1)
        sink.write(Packet([Text(" hello", Span(0, 1))], (Span(0, 1),)))
        sink.close()
        sink.close()
    assert out.getvalue() == "hello\n"
