"""Whether anything inside an object changed: a digest of every value reachable from it, by path."""

from __future__ import annotations

from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
OPAQUE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def fingerprint(thing: Any) -> dict[str, Any]:
    """Path to value or digest for everything under `thing`: arrays by bytes, foreign objects by type."""
    found: dict[str, Any] = {}
    _walk(thing, "", found, set())
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Paths that appeared, vanished or hold something else."""
    return sorted(path for path, _ in before.items() ^ after.items())


def _walk(thing: Any, path: str, found: dict[str, Any], above: set[int]) -> None:
    if isinstance(thing, PLAIN):
        found[path] = repr(thing)
    elif isinstance(thing, OPAQUE) or id(thing) in above:
        found[path] = (type(thing).__name__, id(thing))
    elif isinstance(thing, np.ndarray):
        digest = blake2b(np.ascontiguousarray(thing), digest_size=16).hexdigest()
        found[path] = (thing.dtype.str, thing.shape, digest)
    else:
        found[path] = type(thing).__name__
        for name, value in _parts(thing):
            _walk(value, f"{path}{name}", found, above | {id(thing)})


def _parts(thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, dict):
        return [(f"[{k!r}]", v) for k, v in thing.items()]
    if isinstance(thing, (list, tuple)):
        return [(f"[{n}]", v) for n, v in enumerate(thing)]
    if isinstance(thing, (set, frozenset)):
        return [(f"{{{v!r}}}", v) for v in sorted(thing, key=repr)]
    slots = [s for kind in type(thing).__mro__ for s in getattr(kind, "__slots__", ())]
    named = {s: getattr(thing, s) for s in slots if hasattr(thing, s)} | getattr(thing, "__dict__", {})
    return [(f".{name}", value) for name, value in named.items()]
