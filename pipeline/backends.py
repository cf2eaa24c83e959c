"""Where the arithmetic runs, as a graph says it: `backend: cuda`, or `backend: {name: cuda, kv: q8}`.

What a graph may set of a backend are the keyword-only parameters of its class; the class is imported only
when one is set. With `auto` the options of all backends will do, and those that do not take them are passed
over: what was asked for is never left out silently. HANDED is for programs alone: a graph that named a folder
of compiled code could bring code along.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from kernels.backend import BACKENDS
from pipeline.options import Option, options_of

AUTO = "auto"
NAME = Option("backend", "backend", (), (AUTO, *BACKENDS), default=AUTO)
HANDED = frozenset({"cache", "report"})  # pipeline.opening hands these over


def backend_class(name: str) -> type[Any]:
    """The class of a backend in `BACKENDS`; opens nothing."""
    module, attribute = BACKENDS[name].split(":")
    return getattr(import_module(module), attribute)


def options_of_backend(name: str) -> dict[str, Option]:
    """What a graph may set of the backend called `name`; of "auto", what it may set of any."""
    if name == AUTO:
        return _of_any()
    cls = backend_class(name)
    ours = {p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY} - HANDED
    return {key: option for key, option in options_of(cls).items() if option.keyword in ours}


def takers(option: str) -> list[str]:
    """The backends that take an option of that name."""
    return [name for name in BACKENDS if option in options_of_backend(name)]


def unfit(name: str, options: Mapping[str, Any]) -> str:
    """Why the backend called `name` cannot be asked for `options`, by keyword; empty if it can."""
    if unknown := sorted(options.keys() - inspect.signature(backend_class(name)).parameters.keys()):
        return f"has no option {', '.join(unknown)}"
    for option in options_of_backend(name).values():
        value = options.get(option.keyword, option.default)
        if value not in (option.default, *option.choices) and type(value) not in option.kinds:
            return f"{option.name} is {option.wants}, not {value!r}"
    return ""


def _of_any() -> dict[str, Option]:
    """The options of all backends; where several have one, what any of them takes will do."""
    found: dict[str, Option] = {}
    for name in BACKENDS:
        for key, option in options_of_backend(name).items():
            other = found.get(key, option)
            kinds = dict.fromkeys((*other.kinds, *option.kinds))
            choices = dict.fromkeys((*other.choices, *option.choices))
            found[key] = replace(option, kinds=tuple(kinds), choices=tuple(choices))
    return found
