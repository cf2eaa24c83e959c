"""Quantities as people write them ("80ms", "12.5Hz", "512MiB", "8x", "-30dB") to numbers, and back.

`parse(text, unit)` answers in the unit asked for, one of the keys of `QUANTITIES`. A duration or a size
without a unit is refused, zero excepted: 80 could be milliseconds or seconds. Hertz and decibels have one
scale in use, so a bare number passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from pipeline.complaints import hint, quoted
from pipeline.errors import GraphError

LONGEST = 40  # characters
NUMBER = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*([A-Za-z]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a unit measures.

    scales : units that may be written, each in multiples of the first unit asked for
    least, most : bounds in that unit; within : the same in words
    bare : whether a number without a unit will do
    """

    noun: str
    example: str
    scales: dict[str, str]
    least: float
    most: float
    within: str
    bare: bool = False


DURATIONS_S = {"us": "0.000001", "ms": "0.001", "s": "1", "min": "60", "h": "3600"}
DURATIONS_MS = {"us": "0.001", "ms": "1", "s": "1000", "min": "60000", "h": "3600000"}
YEAR_MS = 365 * 24 * 3600e3
QUANTITIES = {
    "ms": Quantity("a duration", "80ms or 1.5s", DURATIONS_MS, 0.0, YEAR_MS, "0 to 8760h"),
    "s": Quantity("a duration", "80ms or 1.5s", DURATIONS_S, 0.0, YEAR_MS / 1000, "0 to 8760h"),
    "Hz": Quantity("a rate", "16kHz or 12.5Hz", {"Hz": "1", "kHz": "1000"}, 0.001, 1e7, "0.001Hz to 10000kHz",
                   bare=True),
    "bytes": Quantity("a size", "512MiB or 4kB",
                      {"B": "1", "kB": "1e3", "MB": "1e6", "GB": "1e9", "KiB": "1024", "MiB": "1048576",
                       "GiB": "1073741824"}, 0.0, float(1 << 60), "0 to 1073741824GiB"),
    "dB": Quantity("a level", "-30dB", {"dB": "1"}, -1000.0, 1000.0, "-1000dB to 1000dB", bare=True),
    "x": Quantity("a pace", "8x or realtime", {"x": "1"}, 0.001, 1e6, "0.001x to 1000000x"),
}  # fmt: skip


def parse(text: str, unit: str) -> float:
    """`text` in `unit`: `parse("1.5s", "ms")` is 1500.0.

    Raises
    ------
    GraphError   if it is not such a quantity, lacks a unit where one is needed, or is out of all range
    """
    quantity = QUANTITIES[unit]
    written = text.strip()
    if unit == "x" and written == "realtime":
        return 1.0
    found = NUMBER.fullmatch(written) if len(written) <= LONGEST else None
    if found is None:
        raise GraphError(f"expected {quantity.noun} such as {quantity.example}, found {quoted(text)}")
    number, suffix = Decimal(found[1]), found[2]
    if not suffix and not quantity.bare and number:
        wants = f"{quantity.noun} with its unit, such as {quantity.example}"
        raise GraphError(f"expected {wants}, found {quoted(text)}")
    if suffix and suffix not in quantity.scales:
        cure = hint(suffix, quantity.scales, "units")
        raise GraphError(f"{quoted(text)} has unit {suffix!r}, expected {quantity.noun}{cure}")
    value = float(number * Decimal(quantity.scales[suffix] if suffix else "1"))
    if not quantity.least <= value <= quantity.most:
        raise GraphError(f"expected {quantity.noun} from {quantity.within}, found {quoted(text)}")
    return value


def show(value: float, unit: str) -> str:
    """`value` in `unit` as a graph would write it: `show(1500.0, "ms")` is "1500ms"."""
    if unit == "bytes":
        return _show_bytes(int(value))
    number = f"{Decimal(repr(float(value))):f}"
    return (number.rstrip("0").rstrip(".") if "." in number else number) + unit


def _show_bytes(count: int) -> str:
    for name, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % scale == 0:
            return f"{count // scale}{name}"
    return f"{count}B"
