"""What a class lets a graph set: its constructor's keywords, by signature, and values checked against them.

A keyword that wears a unit (`left_ms`, `limit_db`, `window_s`, `to_hz`) goes without it in a graph
(`left: 2560ms`), because there the value wears it.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pipeline.complaints import quoted
from pipeline.errors import GraphError
from pipeline.tree import Leaf, Row, Tree, describe
from pipeline.units import QUANTITIES, parse

INJECTED = frozenset({"upstream", "config", "checkpoint", "weights", "backend"})  # build hands these over
SUFFIXES = {"_ms": "ms", "_s": "s", "_hz": "Hz", "_db": "dB", "_bytes": "bytes"}
UNITS = {"to": "Hz", "rate": "Hz", "pace": "x"}  # keywords that say their quantity without a suffix
NOUNS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
}  # fmt: skip
SEQUENCES = (list, tuple, Sequence)


@dataclass(frozen=True, slots=True)
class Option:
    """One thing a graph may set.

    name : as a graph spells it; keyword : as the constructor does
    kinds : the types that will do, of bool, int, float, str, Path; choices : words that will do besides
    many : a list of such values is taken as well; unit : key of `QUANTITIES`, or None
    A value of no kind and no choice can only be handed over by a program.
    """

    name: str
    keyword: str
    kinds: tuple[type, ...]
    choices: tuple[Any, ...] = ()
    optional: bool = False
    many: bool = False
    unit: str | None = None
    default: Any = None
    required: bool = False
    help: str = ""

    @property
    def writable(self) -> bool:
        return bool(self.kinds or self.choices)

    @property
    def wants(self) -> str:
        """What to write, in words."""
        nouns = [repr(choice) for choice in self.choices]
        if self.unit:
            nouns.append(f"{QUANTITIES[self.unit].noun} such as {QUANTITIES[self.unit].example}")
        else:
            nouns += [NOUNS[kind] for kind in self.kinds if not (kind is int and float in self.kinds)]
        return " or ".join([*nouns, *["a list of them"] * self.many, *["null"] * self.optional])


def options_of(cls: type[Any]) -> dict[str, Option]:
    """Every option of `cls` by its name in graphs, in the order of the signature."""
    found = {}
    told = parameter_help(cls)
    for parameter in inspect.signature(cls).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.name not in INJECTED:
            option = _option(cls, parameter, told.get(parameter.name, ""))
            found[option.name] = option
    return found


def injected(cls: type[Any]) -> frozenset[str]:
    """Which of upstream, checkpoint, backend and so on the constructor of `cls` asks for."""
    return INJECTED & inspect.signature(cls).parameters.keys()


def parameter_help(cls: type[Any]) -> dict[str, str]:
    """The lines of the docstring's `Parameters` section, by parameter."""
    text = inspect.getdoc(cls) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?:\n\n|\n\w+\n-+\n|\Z)", text, re.S | re.M)
    found: dict[str, str] = {}
    for line in section[1].splitlines() if section else ():
        if entry := re.match(r"(\w[\w, ]*?) : (.*)", line):
            words = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(words, entry[2].strip())
        elif found and line.startswith(" "):
            found |= dict.fromkeys(words, f"{found[words[0]]} {line.strip()}")
    return found


def convert(option: Option, tree: Tree) -> Any:
    """`tree` as the value of `option`.

    Raises
    ------
    GraphError   with one complaint that does not yet say where
    """
    if not option.writable:
        raise GraphError("is for programs and cannot be written in a graph")
    if option.many and isinstance(tree, Row):
        return tuple(convert(option, item) for item in tree.items)
    if not isinstance(tree, Leaf):
        raise GraphError(f"expected {option.wants}, found {describe(tree)}")
    if tree.value is None and option.optional:
        return None
    for choice in option.choices:
        same = type(choice) is type(tree.value) and choice == tree.value
        if same or (isinstance(choice, str) and tree.loose and choice == tree.text):
            return choice
    if option.unit and tree.value is not None and not isinstance(tree.value, bool):
        return _quantity(option, tree)
    for kind in option.kinds:
        if _is(kind, tree):
            return kind(tree.text) if kind in (str, Path) else kind(tree.value)
    cure = "; write it in quotes" if str in option.kinds and tree.value is not None else ""
    raise GraphError(f"expected {option.wants}, found {describe(tree)}{cure}")


def _is(kind: type, leaf: Leaf) -> bool:
    value = leaf.value
    if kind in (str, Path):
        return isinstance(value, str) or (leaf.loose and leaf.text != "")
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return kind is int and isinstance(value, int)


def _quantity(option: Option, leaf: Leaf) -> float:
    unit = option.unit or ""
    try:
        value = parse(leaf.text, unit)
    except GraphError:
        if option.choices and isinstance(leaf.value, str):
            raise GraphError(f"expected {option.wants}, found {describe(leaf)}") from None
        raise
    if float in option.kinds:
        return value
    if value != int(value):
        raise GraphError(f"expected a whole number of {unit}, found {quoted(leaf.text)}")
    return int(value)


def _option(cls: type[Any], parameter: inspect.Parameter, text: str) -> Option:
    annotation = _annotation(cls, parameter)
    kinds, choices, optional, many = _flatten(annotation)
    numeric = int in kinds or float in kinds
    suffix = next((s for s in SUFFIXES if parameter.name.endswith(s) and parameter.name != s), "")
    unit = (SUFFIXES.get(suffix) or UNITS.get(parameter.name)) if numeric and str not in kinds else None
    required = parameter.default is parameter.empty
    return Option(
        parameter.name.removesuffix(suffix) if unit else parameter.name, parameter.name, kinds, choices,
        optional, many, unit, None if required else parameter.default, required, text,
    )  # fmt: skip


def _annotation(cls: type[Any], parameter: inspect.Parameter) -> Any:
    """The type of a parameter: what is written, else what its default is, else anything."""
    annotation = parameter.annotation
    if isinstance(annotation, str):  # from __future__ import annotations
        space: Mapping[str, Any] = vars(sys.modules[cls.__module__])
        try:
            annotation = eval(annotation, dict(space))  # the class's own source, already imported
        except NameError:  # imported for type checkers only, so nothing a graph could write
            return object
    if annotation is not parameter.empty and annotation is not Any:
        return annotation
    plain = isinstance(parameter.default, bool | int | float | str | Path)
    return type(parameter.default) if plain else bool | int | float | str | None


def _flatten(annotation: Any) -> tuple[tuple[type, ...], tuple[Any, ...], bool, bool]:
    """(kinds, choices, whether None will do, whether a list will do) of an annotation."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [_flatten(part) for part in get_args(annotation)]
        kinds = tuple(dict.fromkeys(kind for part in parts for kind in part[0]))
        choices = tuple(choice for part in parts for choice in part[1])
        return kinds, choices, any(part[2] for part in parts), any(part[3] for part in parts)
    if origin is Literal:
        return (), get_args(annotation), False, False
    if isinstance(origin, type) and origin in SEQUENCES:
        kinds, choices, _, _ = _flatten(next(iter(get_args(annotation)), object))
        return kinds, choices, False, True
    if annotation is None or annotation is type(None):
        return (), (), True, False
    return ((annotation,) if annotation in NOUNS else ()), (), False, False
