"""What standard error shows where somebody watches."""

from __future__ import annotations

import os
import re
import sys

import pytest

from pipeline.progress import progress, say

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.skipif(os.name == "nt", reason="a terminal made by a test is POSIX's")
def test_what_is_said_while_a_bar_is_drawn_has_a_line_of_its_own(monkeypatch):
    watcher, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress("loading", unit="stages") as report:
            report(0, 3)
            say("compiling [bold] kernels :smile:")
            report(3, 3)
        say("done")
    shown = CONTROL.sub("", os.read(watcher, 1 << 16).decode())
    os.close(watcher)
    lines = re.split(r"[\r\n]+", shown)
    assert "compiling [bold] kernels :smile:" in lines and "done" in lines
    assert [line for line in lines if line.startswith("loading")], "the bar was drawn"


def test_without_a_bar_it_is_said_all_the_same(capsys):
    with progress("loading"):
        say("one\x1b")
    assert capsys.readouterr().err == "one\\x1b\n"
