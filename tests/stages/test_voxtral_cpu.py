"""The model's stages keep the laws on compiled kernels; with f32 rings as closely as on portable ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import BackendMissing, open_backend
from tests.laws import LAWS, Case, stillness
from tests.stages.test_voxtral_cuda import ENCODER_ATOL as HALF_ATOL
from tests.stages.test_voxtral_laws import ENCODER_ATOL, bits_stay, cases

WAYS: dict[str, tuple[dict[str, Any], float]] = {  # options; how far the encoder's chunkings may be apart
    "f32": ({"kv": "f32", "threads": 1}, ENCODER_ATOL),
    "f16": ({"threads": 1}, HALF_ATOL),  # a key that is rounded the other way
    "all threads": ({}, HALF_ATOL),
}
CLOCKED = "all threads", stillness  # how many are woken is learnt by the clock; no result depends on that


@cache
def trial(way: str) -> dict[str, Case]:
    """The stages by name; all but their backend, which has work memory, is left as it is."""
    options, atol = WAYS[way]
    try:
        ops = open_backend("cpu", **options)
    except BackendMissing as reason:
        pytest.skip(str(reason))
    own = {"still": apart_from_backend, "twin": copy.deepcopy}
    few = cases(ops, ", cpu", tokens=20, encoder_atol=atol)
    return {case.name.partition(",")[0]: replace(case, **own) for case in few}


def apart_from_backend(stage: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(stage).items() if name != "ops"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["encoder", "adapter", "decoder"])
@pytest.mark.parametrize("law", [*LAWS, bits_stay], ids=lambda law: law.__name__)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_law(law, stage, way, data):
    if (way, law) != CLOCKED:
        law(trial(way)[stage], data.draw)
