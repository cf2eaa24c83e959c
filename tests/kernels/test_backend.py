"""Finding a backend."""

from __future__ import annotations

import pytest

from kernels import BackendMissing, open_backend
from kernels.backend import BACKENDS, Backend


def test_auto_opens_something():
    assert open_backend().name in BACKENDS


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_every_verb_of_the_protocol(name):
    try:
        backend = open_backend(name)
    except BackendMissing as reason:
        pytest.skip(f"{name}: {reason}")
    verbs = [verb for verb in vars(Backend) if not verb.startswith("_")]
    assert len(verbs) == 26, "the docstring of Backend counts them"
    assert [verb for verb in verbs if not callable(getattr(backend, verb, None))] == []
    assert backend.name == name


def test_an_unknown_backend_is_refused_with_the_known_names():
    with pytest.raises(BackendMissing, match=r"'tpu'.*portable"):
        open_backend("tpu")


def test_a_reason_names_its_backend_once():
    with pytest.raises(BackendMissing) as caught:
        open_backend("cpu", isa="abacus")
    assert str(caught.value).startswith("cpu: ") and str(caught.value).count("cpu: ") == 1


def test_auto_passes_over_what_does_not_take_the_options():
    assert open_backend("auto", widen_bytes=0).name == "portable"
    with pytest.raises(BackendMissing) as caught:
        open_backend("auto", moon_phase=3)
    reasons = str(caught.value).splitlines()
    assert reasons == [f"{name}: has no option moon_phase" for name in reversed(BACKENDS)]
