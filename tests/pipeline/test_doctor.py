"""The doctor looks at everything, names a cure for every trouble and never falls ill itself."""

from __future__ import annotations

import io
import json
import sys
from base64 import b64encode
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

import graphs
from kernels.backend import BACKENDS
from kernels.cuda.diagnosis import Facts
from pipeline.opening import open_chosen
from pipeline.tools import doctor, machine
from pipeline.tools.doctor import SECTIONS, built_in, examine
from pipeline.tools.findings import MISSING, NOTE, OK, WARNING, WIDTH, Finding
from pipeline.tools.vocabulary import OTHERS, vocabulary

MODELS = Path(graphs.__file__).parent / "models"


def found(section: str) -> dict[str, Finding]:
    return {f.name: f for f in examine().findings if f.section == section}


@pytest.fixture
def tiny(monkeypatch, tiny_folder) -> Path:
    """Graphs use the tiny model, whether or not one ships."""
    monkeypatch.setenv("VOXTRAL", str(tiny_folder))
    return tiny_folder


def test_every_section_reports_and_every_trouble_has_a_cure(tiny):
    report = examine()
    assert list(dict.fromkeys(f.section for f in report.findings)) == list(SECTIONS)
    assert report.healthy
    assert all(f.cure for f in report.findings if f.status in (WARNING, MISSING))
    assert "examination" not in {f.name for f in report.findings}, "a section broke while it was examined"


def test_text_and_json_tell_the_same(tiny):
    report = examine()
    told = json.loads(json.dumps(report.as_json()))
    assert [finding["name"] for finding in told["findings"]] == [f.name for f in report.findings]
    text = report.text()
    assert all(f"{f.name}: " in text for f in report.findings)
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_section_that_breaks_is_a_finding(monkeypatch):
    def broken():
        raise RuntimeError("no /proc here")

    monkeypatch.setitem(SECTIONS, "python", broken)
    first = examine().findings[0]
    assert (first.status, first.detail) == (WARNING, "stopped by RuntimeError: no /proc here")


def test_the_model_that_graphs_use_is_named_with_its_reason(tiny):
    models = found("models")
    assert models[tiny.name].status == OK and "named by VOXTRAL" in models[tiny.name].detail
    assert models["memory on portable"].status == OK


def test_weights_that_are_not_there_are_missing_with_a_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("VOXTRAL", str(tmp_path / "nowhere"))
    report = examine()
    assert not report.healthy and "missing: the lines marked no" in report.text()
    assert "unset VOXTRAL" in found("models")["nowhere"].cure


def test_a_model_too_large_for_the_memory_is_warned_of(tiny, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 1000)
    memory = found("models")["memory on portable"]
    assert memory.status == WARNING and "1.0 kB are free" in memory.detail


def test_only_the_models_inside_the_package_are_built_in(tiny_folder):
    assert built_in(MODELS / "small-voxtral") and built_in(MODELS / "small-voxtral" / "x.gguf")
    assert not built_in(tiny_folder) and not built_in(MODELS.parent)


def test_every_backend_is_reported():
    backends, best = found("backends"), open_chosen("auto").name
    assert set(backends) == set(BACKENDS)
    assert backends[best].detail == "opens; auto takes it"
    assert best == "portable" or backends["portable"].detail == f"opens; auto takes {best} instead"


CARD = Facts(
    packages=("cupy-cuda13x",), importable=True, version="14.2.0", built=13020, driver=13010, devices=1,
    name="NVIDIA H200", capability=(9, 0), memory=(139_000_000_000, 140_000_000_000), compiler=(13, 0),
)  # fmt: skip


@pytest.fixture
def kernel_cache(monkeypatch, tmp_path) -> Path:
    """Where CuPy is to keep what it compiles; not made yet."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def cuda_rows(facts: Facts, driver: str | None = None) -> dict[str, tuple[str, str, str]]:
    return {name: rest for name, *rest in doctor.cuda_rows(facts, driver)}


def test_a_gpu_that_works_is_described(kernel_cache):
    kernel_cache.mkdir()
    (kernel_cache / "0123.cubin").write_bytes(bytes(2000))
    assert list(doctor.cuda_rows(CARD, "580.65.06")) == [
        ("driver", OK, "580.65.06, runs programs made for CUDA up to 13.1", ""),
        ("CuPy", OK, "cupy-cuda13x 14.2.0, made for CUDA 13.2", ""),
        ("device", OK, "NVIDIA H200, compute capability 9.0", ""),
        ("memory", OK, "139.0 GB of 140.0 GB are free", ""),
        ("compiler", OK, "NVRTC 13.0, and its headers are there", ""),
        ("kernels", OK, f"compiled ones: 1 file in {kernel_cache}, 2.0 kB", ""),
    ]


def test_what_keeps_a_gpu_from_being_used_is_told_with_its_cure(kernel_cache):
    status, detail, cure = cuda_rows(replace(CARD, driver=12040, devices=0, name="", compiler=None))["cuda"]
    assert status == WARNING and detail.endswith("expected CUDA 13.0 or later, found 12.4")
    assert "pip install 'headrace[cuda12]'" in cure


def test_a_machine_without_a_gpu_is_only_noted():
    rows = cuda_rows(Facts())
    assert list(rows) == ["cuda"] and rows["cuda"][0] == NOTE
    assert "works without it" in rows["cuda"][1] and "headrace[cuda13]" in rows["cuda"][2]


def test_a_kernel_cache_that_cannot_be_written_is_warned_of(kernel_cache):
    kernel_cache.write_text("a file stands where the folder would")
    status, detail, cure = cuda_rows(CARD)["kernels"]
    assert status == WARNING and "cannot be written" in detail and "CUPY_CACHE_DIR" in cure


def test_a_missing_extra_is_a_note_and_a_missing_need_is_missing():
    assert doctor._package('no-such-thing>=3; extra == "mic"', "mic") == (
        "no-such-thing", "note", "not installed, needed to hear a microphone", "pip install 'headrace[mic]'",
    )  # fmt: skip
    assert doctor._package("no-such-thing>=3", None)[1:] == (
        MISSING,
        "not installed",
        "pip install 'no-such-thing>=3'",
    )


def test_a_package_that_is_too_old_is_told_apart_from_one_that_is_not():
    have = metadata.version("numpy")
    assert doctor._package("numpy>=1.26", None) == ("numpy", OK, have, "")
    assert doctor._package("numpy>=99.1", None)[1:3] == (MISSING, f"{have}, but at least 99.1 is wanted")


def test_another_package_of_our_name_is_warned_of(monkeypatch):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"kernels": ["headrace", "kernels"]})
    place = found("where packages come from")
    assert place["kernels"].status == WARNING and "pip uninstall kernels" in place["kernels"].cure
    assert place["stages"].status == OK


def test_an_output_that_cannot_say_everything_is_warned_of(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert found("terminal")["standard output"].cure == "set PYTHONUTF8=1"


def test_a_small_vocabulary_is_told_in_groups(tmp_path, tiny_folder):
    text = json.loads((tiny_folder / "tekken.json").read_text())
    said = [" seven", " a", " march", " third", " latte", " <unused_0>"]
    text["vocab"] = text["vocab"][:256] + [
        {"rank": 256 + n, "token_bytes": b64encode(word.encode()).decode()} for n, word in enumerate(said)
    ]
    text["config"]["default_vocab_size"] = text["config"]["default_num_special_tokens"] + 256 + len(said)
    (tmp_path / "tekken.json").write_text(json.dumps(text))
    words = vocabulary(tmp_path / "tekken.json")
    assert not words.open and words.size == 5
    groups = {"letters": ("a",), "numbers": ("seven",), "ordinals": ("third",), "months": ("march",)}
    assert words.groups == groups | {OTHERS: ("latte",)}
    assert "latte" in words.limits and "5 words of English" in words.summary


def test_what_the_machine_says_of_itself_makes_sense():
    about = machine.describe_machine()
    assert about["cores"] >= 1 and about["threads"][0] >= 1 and about["cpu"] and about["blas"]
    assert (
        machine.size(999) == "999 bytes"
        and machine.size(1_700_000) == "1.7 MB"
        and machine.size(2.5e9) == "2.5 GB"
    )
    free, peak = machine.memory_available(), machine.peak_memory()
    assert (free is None or free > 0) and (peak is None or peak > 1 << 20)
