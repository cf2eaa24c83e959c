"""Standard error: what the user should know, and progress bars where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

Report = Callable[[float, float | None], None]  # (done, total); total None where it is not known
_drawn: ContextVar[Any] = ContextVar("drawn", default=None)  # the console of the bar that is being drawn


@contextmanager
def progress(what: str, *, unit: str = "bytes", quiet: bool = False) -> Iterator[Report]:
    """A bar called `what`; yields the function that moves it.

    unit : "bytes", "s" of audio, or a noun to count in
    quiet : no bar, whoever watches
    """
    if quiet or not watched():
        yield lambda done, total: None
        return
    from rich import progress as bars
    from rich.console import Console

    count = bars.DownloadColumn() if unit == "bytes" else bars.TextColumn(f"{{task.completed:.0f}} {unit}")
    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TaskProgressColumn(), count,
        bars.TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Progress(
        *columns, console=Console(stderr=True), transient=True,
        redirect_stdout=False, redirect_stderr=False,  # else rich sends our text to the console of the bar
    ) as bar:  # fmt: skip
        task, before = bar.add_task(what, total=None), _drawn.set(bar.console)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            _drawn.reset(before)


def say(text: str) -> None:
    """One line, or a few, on standard error; control characters, as file names may hold them, are spelt out.

    A bar moves down for it. Where there is no standard error any more nobody can be told, and work goes on.
    """
    if sys.stderr is None:  # print would take standard output instead
        return
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    with suppress(OSError):
        if (console := _drawn.get()) is not None:
            console.print(shown, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(shown, file=sys.stderr, flush=True)


def watched() -> bool:
    """Whether a bar would be seen: standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def text_is_watched() -> bool:
    """Whether standard output is a terminal, where the text itself shows how far we are."""
    return sys.stdout is not None and sys.stdout.isatty()
