"""Quantities: what is written comes back as a number, and nothing else does."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import GraphError
from pipeline.units import QUANTITIES, parse, show

WRITTEN = [
    ("80ms", "ms", 80.0),
    ("1.5s", "ms", 1500.0),
    ("0.08s", "ms", 80.0),
    ("37ms", "s", 0.037),
    ("2 min", "s", 120.0),
    ("1h", "ms", 3_600_000.0),
    ("0", "ms", 0.0),
    ("12.5Hz", "Hz", 12.5),
    ("48kHz", "Hz", 48_000.0),
    ("44.1kHz", "Hz", 44_100.0),
    ("16000", "Hz", 16_000.0),
    ("512MiB", "bytes", 536_870_912.0),
    ("4kB", "bytes", 4000.0),
    ("8x", "x", 8.0),
    ("0.5x", "x", 0.5),
    ("realtime", "x", 1.0),
    ("-30dB", "dB", -30.0),
    ("-30", "dB", -30.0),
]
REFUSED = [
    ("80", "ms", "with its unit"),
    ("-80ms", "ms", "from"),
    ("nan", "ms", "expected a duration"),
    ("infms", "ms", "expected a duration"),
    ("1e9ms", "ms", "expected a duration"),
    ("9" * 30 + "h", "ms", "from"),
    ("9" * 5000 + "ms", "ms", "expected a duration"),
    ("80MS", "ms", "did you mean 'ms'"),
    ("80Hz", "ms", "has unit 'Hz'"),
    ("٨٠ms", "ms", "expected a duration"),
    ("", "ms", "expected a duration"),
    ("512", "bytes", "with its unit"),
    ("0x", "x", "from"),
    ("0Hz", "Hz", "from"),
    ("fast", "x", "expected a pace"),
    ("16 000", "Hz", "expected a rate"),
]


@pytest.mark.parametrize(("text", "unit", "value"), WRITTEN)
def test_a_quantity_is_read_exactly(text, unit, value):
    assert parse(text, unit) == value


@pytest.mark.parametrize(("text", "unit", "says"), REFUSED)
def test_what_is_no_such_quantity_is_refused(text, unit, says):
    with pytest.raises(GraphError, match=says):
        parse(text, unit)


@given(st.sampled_from(sorted(QUANTITIES)), st.decimals(0, 9999, places=3))
def test_what_is_shown_reads_back(unit, number):
    quantity = QUANTITIES[unit]
    within = min(max(float(number), quantity.least), quantity.most)
    value = float(int(within)) if unit == "bytes" else within
    assert parse(show(value, unit), unit) == value


@given(st.integers(0, 10**7), st.integers(0, 3))
def test_milliseconds_and_seconds_agree(count, places):
    text = str(Decimal(count).scaleb(-places))
    if "E" not in text:
        assert parse(f"{text}s", "ms") == float(Decimal(text) * 1000)
        assert parse(f"{text}ms", "ms") == float(text)


@settings(max_examples=200)
@given(st.text(), st.sampled_from(sorted(QUANTITIES)))
def test_any_text_is_a_finite_number_or_a_complaint(text, unit):
    quantity = QUANTITIES[unit]
    try:
        assert quantity.least <= parse(text, unit) <= quantity.most
    except GraphError as fault:
        assert "\n" not in str(fault)
