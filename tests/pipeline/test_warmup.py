"""`warmup` and what it leaves behind; what the doctor says of the backend cpu."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernels import BackendMissing
from kernels.cpu import machine as compiler
from kernels.cpu import objects
from kernels.cuda.backend import Cuda
from kernels.cuda.source import FILES
from pipeline.cli import main
from pipeline.graph import parse_graph
from pipeline.opening import ISA_VARIABLE
from pipeline.tools import kept, processor, warmup
from pipeline.tools.findings import NOTE, OK, WARNING
from pipeline.tools.kept import Kept, cpu_kernels, cuda_kernels, kept_for
from pipeline.tools.processor import cpu_rows
from pipeline.tools.warmup import warm_up
from tests.kernels.emulator.device import EmulatedDevice

linux = pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")


class Ready:
    """A backend that has compiled what it needs."""

    name, isa = "cpu", "plain"


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    return tmp_path


def opened(monkeypatch, backend=None) -> None:
    monkeypatch.setattr(warmup, "open_chosen", lambda name, options: backend or Ready())


def rows(environ: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    return {name: (status, detail, cure) for name, status, detail, cure in cpu_rows(environ)}


def test_a_backend_without_a_compiler_has_nothing_to_warm(capsys):
    assert main(["warmup", "--backend", "portable"]) == 0
    assert capsys.readouterr().out == "portable: nothing to compile\n"


@linux
def test_warming_says_how_long_it_took_and_what_is_kept_where(monkeypatch, home):
    opened(monkeypatch)
    (home / "headrace").mkdir()
    (home / "headrace" / "plain-0123.o").write_bytes(bytes(2000))
    said = str(warm_up(parse_graph("use: voxtral.yaml\n", "g.yaml")))
    assert said.startswith("cpu, plain: kernels are ready after ")
    assert said.endswith(f" s and kept, 1 file in {home / 'headrace'}, 2.0 kB")


@linux
def test_warming_what_cannot_be_kept_is_a_failure(monkeypatch, home, capsys):
    opened(monkeypatch)
    (home / "headrace").write_text("a file stands where the folder would")
    assert main(["warmup"]) == 1
    said = capsys.readouterr().err
    assert f"{home / 'headrace'} cannot be written: every start compiles; set XDG_CACHE_HOME" in said


@linux
def test_what_is_kept_is_counted_by_kind(home):
    for name in ("headrace/a.o", "headrace/b.o", "headrace/c.part", "cupy/d.cubin"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"12345")
    assert cpu_kernels() == Kept(home / "headrace", 2, 10, True, kept.HOW_CPU)
    assert cuda_kernels() == Kept(home / "cupy", 1, 5, True, kept.HOW_CUDA)
    assert kept_for(Ready()) == cpu_kernels()


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.setattr(kept, "cache_folder", lambda environ: None)
    assert not cpu_kernels().writable


def test_the_threads_say_what_their_number_comes_from():
    assert processor._threads(2, 2, 2) == "2, all cores of this machine"
    assert processor._threads(2, 2, 64) == "2, the cores this process is bound to (affinity), of 64"
    assert processor._threads(1, 8, 64) == "1, the quota of this control group (cpu.max), of 8 cores"


def test_a_missing_compiler_is_a_warning_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    (name, status, detail, cure), *rest = cpu_rows({})
    assert (name, status, rest) == ("compiler", WARNING, []) and "numba" in detail
    assert cure.startswith("pip install numba")


@linux
def test_the_instruction_set_and_its_kernels_are_looked_at_without_compiling(tmp_path):
    pytest.importorskip("numba")
    folder = tmp_path / "headrace"
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    found = rows(environ)
    best, *others = compiler.usable()
    assert found["compiler"][0] == OK and "llvmlite" in found["compiler"][1]
    assert found["instruction set"][1].startswith(f"{best}, the best that ")
    assert all(name in found["instruction set"][1] for name in others)
    assert found["kernels"][0] == NOTE and "pipeline warmup" in found["kernels"][2]
    assert not folder.exists()

    objects.write(folder, compiler.fingerprint("generic"), b"code")
    forced = rows(environ | {ISA_VARIABLE: "generic"})
    assert forced["instruction set"][1].startswith(f"generic, forced by {ISA_VARIABLE}")
    assert forced["kernels"] == (OK, f"compiled for generic, 4 bytes in {folder}", "")

    refused = rows(environ | {ISA_VARIABLE: "abacus"})
    assert refused["instruction set"][0] == WARNING and "abacus" in refused["instruction set"][1]
    assert refused["instruction set"][2] == f"unset {ISA_VARIABLE}"


@linux
def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path):
    pytest.importorskip("numba")
    (tmp_path / "headrace").write_text("a file stands where the folder would")
    status, detail, cure = rows({"XDG_CACHE_HOME": str(tmp_path)})["kernels"]
    assert status == WARNING and "every start compiles" in detail and cure == kept.HOW_CPU


def test_a_gpu_is_warmed_with_the_kernels_of_measurements_too(monkeypatch, home):
    asked: set[str] = set()
    try:
        backend = Cuda(EmulatedDevice("plain"))
    except BackendMissing as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(backend.device, "kernel", lambda file, name: asked.add(file))
    opened(monkeypatch, backend)
    said = str(warm_up(parse_graph("use: voxtral.yaml\n", "g.yaml")))
    assert asked == set(FILES)
    assert said.startswith("cuda: kernels are ready after ") and str(home / "cupy") in said
