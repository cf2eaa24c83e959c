"""Progress bars on standard error, where somebody watches; nothing at all where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[float, float | None], None]  # (done, total); total None where it is not known


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
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def watched() -> bool:
    """Whether a bar would be seen: standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
