"""JSON that somebody else wrote: bounded in size, no key twice, values asked for by type and bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from stages.errors import FormatError, StageError

_REQUIRED: Any = object()


def read_json(path: Path, limit: int, error: type[StageError] = FormatError) -> dict[str, Any]:
    """The object in the file `path`, which may hold at most `limit` bytes.

    Raises
    ------
    error   naming the file and what is wrong with it, line and column included where they are known
    """
    try:
        if not path.is_file():
            raise error(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path}: expected at most {limit} bytes of JSON, found {size}")
        data = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from reason
    return parse_json(data, str(path), error)


def parse_json(data: bytes, where: str, error: type[StageError] = FormatError) -> dict[str, Any]:
    """The object that `data` spells in UTF-8; `where` opens every complaint."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise error(f"{where}: JSON is nested too deeply") from None
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8: byte {data[reason.start]:#04x} at {reason.start}") from None
    except ValueError as reason:  # JSONDecodeError, and our two hooks
        raise error(f"{where}: not valid JSON: {str(reason)[:200]}") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found a {type(value).__name__}")
    return value


def repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that was there before, in one walk however many there are."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key {repeated(key for key, _ in pairs)!r} appears twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class Fields:
    """One JSON object whose values are asked for by name, type and bounds.

    Every getter takes a default for a field that may be absent (or null); without one the field is required.
    """

    __slots__ = ("data", "error", "where")

    def __init__(self, data: Mapping[str, Any], where: str, error: type[StageError] = FormatError):
        self.data, self.where, self.error = data, where, error

    def integer(self, name: str, low: int, high: int, default: int = _REQUIRED) -> int:
        """A whole number in [low, high]; a float without fraction counts as one."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, low: float, high: float, default: float = _REQUIRED) -> float:
        """A finite number in [low, high]."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def text(self, name: str, default: str = _REQUIRED) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            self.wrong(name, "a string", value)
        return value

    def child(self, name: str) -> Fields:
        """The object under `name`, with its own place in the complaints."""
        value = self._get(name, _REQUIRED)
        if not isinstance(value, dict):
            self.wrong(name, "an object", value)
        return Fields(value, f"{self.where}: {name}", self.error)

    def items(self, name: str, default: list[Any] = _REQUIRED) -> list[Any]:
        value = self._get(name, default)
        if not isinstance(value, list):
            self.wrong(name, "a list", value)
        return value

    def only(self, name: str, expected: Any) -> None:
        """Insist that `name`, if present, is `expected`: the one variant that is implemented."""
        value = self._get(name, expected)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            self.wrong(name, f"{expected!r}, the only variant implemented", value)

    def wrong(self, name: str, expected: str, value: Any) -> NoReturn:
        """Raise: `name` should have been `expected`."""
        raise self.error(f"{self.where}: {name} should be {expected}, found {_short(value)}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(f"{self.where}: {name!r} is missing")
        return default


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 128:
        return f"a number of about {math.log10(abs(value)):.0f} digits"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
