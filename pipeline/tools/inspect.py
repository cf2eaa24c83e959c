"""What a graph may name, explained by the classes themselves: docstring, options, defaults, plugs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from kernels.backend import BACKENDS
from pipeline.backends import backend_class, options_of_backend
from pipeline.catalog import KINDS, find, names
from pipeline.complaints import hint, quoted
from pipeline.errors import GraphError
from pipeline.options import Option, options_of
from pipeline.plugs import plug_summary
from pipeline.units import show

WIDTH = 100
BACKEND = "backend"
HEADINGS = {"stage": "stages", "source": "sources", "sink": "sinks", BACKEND: "backends"}


def listing() -> str:
    """Every stage, source, sink and backend with its first sentence."""
    known = _known()
    width = max(len(name) for found in known.values() for name in found)
    blocks = []
    for kind, heading in HEADINGS.items():
        rows = [f"  {name:{width}}  {_first_line(kind, name)}".rstrip() for name in known[kind]]
        blocks.append("\n".join([heading, *rows]))
    return "\n\n".join([*blocks, "inspect NAME explains one, with its options"])


def explain(name: str) -> str:
    """One of them in full; where several share a name, as a source and a sink may, each.

    Raises
    ------
    GraphError   if nothing has that name
    """
    known = _known()
    found = [kind for kind in known if name in known[kind]]
    if not found:
        every = {one for names in known.values() for one in names}
        raise GraphError(f"no stage, source, sink or backend is called {quoted(name)}{hint(name, every)}")
    return "\n\n".join("\n".join(_page(kind, name)) for kind in found)


def default_of(option: Option) -> str:
    """An option's default as a graph would write it."""
    if option.unit and isinstance(option.default, int | float):
        return show(option.default, option.unit)
    if isinstance(option.default, bool) or option.default is None:
        return {True: "true", False: "false", None: "null"}[option.default]
    return str(option.default)


def _known() -> dict[str, list[str]]:
    return {kind: list(names(kind)) for kind in KINDS} | {BACKEND: list(BACKENDS)}


def _find(kind: str, name: str) -> type[Any]:
    return backend_class(name) if kind == BACKEND else find(kind, name)


def _page(kind: str, name: str) -> Iterator[str]:
    cls = _find(kind, name)
    yield f"{name}  ({kind}, {cls.__module__}:{cls.__qualname__})"
    yield ""
    yield from (f"  {line}".rstrip() for line in _body(cls).splitlines())
    if kind == "stage" and (summary := plug_summary(cls)):
        (takes, hop), (gives, gives_hop) = summary
        yield ""
        yield f"  plugs: takes {takes} (hop {hop}), gives {gives} (hop {gives_hop})"
    yield ""
    options = (options_of_backend(name) if kind == BACKEND else options_of(cls)).values()
    yield "  options:" if options else "  no options"
    for option in options:
        must = "required" if option.required else f"default {default_of(option)}"
        yield f"    {option.name}: {option.wants if option.writable else 'given by a program only'}; {must}"
        yield from textwrap.wrap(option.help, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _body(cls: type[Any]) -> str:
    """The docstring without its `Parameters` section, which the options replace."""
    sections = (inspect.getdoc(cls) or "no description").split("\n\n")
    return "\n\n".join(text for text in sections if not text.startswith("Parameters\n"))


def _first_line(kind: str, name: str) -> str:
    try:
        return (inspect.getdoc(_find(kind, name)) or "").split("\n", 1)[0]
    except GraphError as fault:  # an installed package's stage that does not load must not hide the others
        return f"({fault})"
