"""Where the arithmetic runs, as a graph says it: `backend: cuda`, or `backend: {name: cuda, kv: q8}`.

What a graph may set of a backend are the keyword-only parameters of its class; the class is imported only
when one is set. With `auto` the options of all backends will do, and those that do not take them are passed
over: what was asked for is never left out silently.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from kernels.backend import BACKENDS
from pipeline.options import Option, options_of

AUTO = "auto"
NAME = Option("backend", "backend", (), (AUTO, *BACKENDS))


def backend_class(name: str) -> type[Any]:
    """The class of a backend in `BACKENDS`; opens nothing."""
    module, attribute = BACKENDS[name].split(":")
    return getattr(import_module(module), attribute)


def options_of_backend(name: str) -> dict[str, Option]:
    """What a graph may set of the backend called `name`; of "auto", what it may set of any."""
    if name == AUTO:
        return {key: option for each in BACKENDS for key, option in options_of_backend(each).items()}
    cls = backend_class(name)
    ours = {p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY}
    return {key: option for key, option in options_of(cls).items() if option.keyword in ours}


def takers(option: str) -> list[str]:
    """The backends that take an option of that name."""
    return [name for name in BACKENDS if option in options_of_backend(name)]
