"""A JSON Schema (draft 2020-12) of graph files, for editors: completion and red underlines while typing.

It is made from the catalog and the constructors' signatures, so it cannot fall behind them. What a schema
cannot say (ranges, plugs, which names `from:` may use) `validate` does.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

from pipeline.backends import AUTO, options_of_backend
from pipeline.backends import NAME as BACKEND
from pipeline.catalog import KINDS, find, names
from pipeline.options import NOUNS, Option, options_of
from pipeline.params import KINDS as PARAM_TYPES
from pipeline.tools.inspect import default_of
from pipeline.units import QUANTITIES

Schema = dict[str, Any]
JSON_TYPES = {bool: "boolean", int: "integer", float: "number"}
REFERENCE: Schema = {"type": "string", "pattern": r"\$", "description": "$param or ${VARIABLE:-default}"}
NAME: Schema = {"type": "string", "minLength": 1}
assert JSON_TYPES.keys() <= NOUNS.keys(), "every type of an option has a JSON type, or is text"


def schema_text() -> str:
    """The schema as indented JSON."""
    return json.dumps(graph_schema(), indent=1)


def graph_schema() -> Schema:
    """The schema as plain data."""
    sink = {"$ref": "#/$defs/sink"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headrace graph",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["chain"]}, {"required": ["use"]}],
        "not": {"required": ["sink", "sinks"]},
        "properties": {
            "use": {"anyOf": [_use(), {"type": "array", "items": _use(), "minItems": 1}]},
            "clock": {"anyOf": [{"type": "integer", "minimum": 1}, _quantity("Hz"), REFERENCE]},
            "params": {"type": "object", "additionalProperties": _param()},
            "weights": {"type": "string", "description": "a folder or a .gguf file"},
            "backend": _backend(),
            "chain": {"type": "array", "items": {"$ref": "#/$defs/stage"}},
            "source": {"$ref": "#/$defs/source"},
            "sink": sink,
            "sinks": {"type": "array", "items": sink},
            "lanes": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "count": {"anyOf": [{"type": "integer", "minimum": 1}, REFERENCE]},
                    "wait": {"anyOf": [_quantity("ms"), {"const": 0}, REFERENCE]},
                },
            },
        },
        "$defs": {kind: _entry(kind) for kind in KINDS},
    }


def _backend() -> Schema:
    name = _option(BACKEND)
    options = {key: _option(option) for key, option in options_of_backend(AUTO).items()}
    with_options = {"type": "object", "additionalProperties": False, "properties": {"name": name, **options}}
    return {"anyOf": [name, with_options]}


def _use() -> Schema:
    return {"anyOf": [NAME, {"type": "object", "minProperties": 1, "maxProperties": 1}]}


def _param() -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["type"],
        "properties": {
            "type": {"enum": [*PARAM_TYPES, "choice"]},
            "default": {},
            "help": {"type": "string"},
            "choices": {"type": "array", "minItems": 1},
        },
    }


def _entry(kind: str) -> Schema:
    """A name, or a name with options: `mel` or `{mel: {...}}`."""
    known = {name: find(kind, name) for name in names(kind)}
    plain = [
        {"const": name, "description": _summary(cls)}
        for name, cls in known.items()
        if not any(option.required for option in options_of(cls).values())
    ]
    with_options: Schema = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: _options(kind, cls) for name, cls in known.items()},
        "additionalProperties": False,
    }
    if kind == "stage":
        plain.append({"type": "string", "pattern": ":", "description": "module:Class, with --allow-import"})
        with_options["patternProperties"] = {":": {"type": ["object", "null"]}}
    return {"anyOf": [*plain, with_options]}


def _options(kind: str, cls: type[Any]) -> Schema:
    options = [option for option in options_of(cls).values() if option.writable]
    properties = {option.name: _option(option) for option in options}
    wiring = {"stage": ("from", "as"), "sink": ("from", "as"), "source": ()}[kind]
    schema: Schema = {
        "type": ["object", "null"],
        "description": _summary(cls),
        "properties": properties | dict.fromkeys(wiring, NAME),
        "additionalProperties": False,
    }
    if required := [option.name for option in options if option.required]:
        schema |= {"type": "object", "required": required}
    return schema


def _option(option: Option) -> Schema:
    forms: list[Schema] = [{"const": choice} for choice in option.choices]
    if option.unit:
        forms.append(_quantity(option.unit))
        forms.append({"type": "number"} if QUANTITIES[option.unit].bare else {"const": 0})
    else:
        forms += [{"type": JSON_TYPES.get(kind, "string")} for kind in option.kinds]
    if option.many:
        forms.append({"type": "array", "items": {"anyOf": list(forms)}})
    if option.optional:
        forms.append({"type": "null"})
    schema: Schema = {"anyOf": [*forms, REFERENCE], "description": option.help or option.wants}
    return schema if option.required else schema | {"default": default_of(option)}


def _quantity(unit: str) -> Schema:
    units = "|".join(QUANTITIES[unit].scales)
    words = "|realtime" if unit == "x" else ""
    return {
        "type": "string",
        "pattern": rf"^([-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+) *({units}){words})$",
        "description": f"{QUANTITIES[unit].noun}, such as {QUANTITIES[unit].example}",
    }


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or cls.__name__).split("\n", 1)[0]
