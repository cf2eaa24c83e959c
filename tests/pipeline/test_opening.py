"""Opening a backend: what the environment says, what is compiled and told, and what auto does without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest

from kernels import BackendMissing
from kernels.backend import BACKENDS
from kernels.cuda.backend import Cuda
from kernels.cuda.source import FILES, kernels
from kernels.portable.backend import Portable
from pipeline import opening
from pipeline.backends import options_of_backend, takers, unfit
from pipeline.cli import main
from pipeline.errors import GraphError
from pipeline.opening import ISA_VARIABLE, UNUSED, cache_folder, compile_kernels, open_chosen
from pipeline.tools import doctor

HERE = "tests.pipeline.test_opening"
ABSENT = "numba not installed; pip install numba"


class Compiled(Portable):
    """Takes what a compiled backend takes, and says what it was given."""

    name = "cpu"

    def __init__(
        self, *, isa: str = "auto", kv: Literal["f16", "f32"] = "f16", threads: int | None = None,
        cache: Path | None = None, report=None,
    ):  # fmt: skip
        super().__init__()
        if isa == "absent":
            raise BackendMissing("cpu: no instruction set is called 'absent'; there are plain and auto")
        self.given = {"isa": isa, "kv": kv, "threads": threads, "cache": cache}
        report("compiling kernels for plain, once for this machine")


class Absent(Portable):
    """What the backend is where its compiler is not installed."""

    def __init__(self, *, isa: str = "auto", threads: int | None = None):
        raise BackendMissing(ABSENT)


@pytest.fixture
def compiled(monkeypatch) -> None:
    choose(monkeypatch, "Compiled")


@pytest.fixture
def absent(monkeypatch) -> None:
    choose(monkeypatch, "Absent")


def choose(monkeypatch, kind: str) -> None:
    """Let `kind` be the compiled backend, the best after portable."""
    for name in list(BACKENDS):
        monkeypatch.delitem(BACKENDS, name)
    monkeypatch.setitem(BACKENDS, "portable", "kernels.portable.backend:Portable")
    monkeypatch.setitem(BACKENDS, "cpu", f"{HERE}:{kind}")
    opening.say_once.cache_clear()


def test_the_environment_forces_an_instruction_set_where_the_graph_names_none(compiled):
    forced = {ISA_VARIABLE: "plain", "XDG_CACHE_HOME": "/kept"}
    assert open_chosen("auto", {}, forced).given["isa"] == "plain"
    assert open_chosen("cpu", {"isa": "auto"}, forced).given["isa"] == "auto"
    assert open_chosen("cpu", {}, {ISA_VARIABLE: ""}).given["isa"] == "auto"
    assert open_chosen("portable", {}, forced).name == "portable"


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_an_instruction_set_that_is_not_to_be_had_is_no_reason_to_take_another_backend(compiled, name):
    with pytest.raises(GraphError, match=f"{ISA_VARIABLE}=absent: .*no instruction set is called 'absent'"):
        open_chosen(name, {}, {ISA_VARIABLE: "absent"})


def test_a_wrong_instruction_set_is_bad_usage_on_the_command_line(compiled, capsys, monkeypatch, tiny_folder):
    monkeypatch.setenv(ISA_VARIABLE, "absent")
    assert main(["run", "file", "--weights", str(tiny_folder), "--set", "sink=lines"]) == 2
    assert f"{ISA_VARIABLE}=absent" in capsys.readouterr().err


def test_a_backend_is_told_where_to_keep_and_whom_to_tell(compiled, capsys):
    backend = open_chosen("cpu", {"threads": 2}, {"XDG_CACHE_HOME": "/kept"})
    if sys.platform == "linux":
        assert backend.given["cache"] == Path("/kept/headrace")
    assert backend.given["threads"] == 2
    assert capsys.readouterr().err == "cpu: compiling kernels for plain, once for this machine\n"


def test_no_graph_can_name_a_folder_that_code_is_loaded_from(compiled):
    assert set(options_of_backend("cpu")) == {"isa", "kv", "threads"}
    assert takers("cache") == takers("report") == []


def test_without_a_compiler_the_reason_is_said_once_and_portable_is_used(absent, capsys):
    assert [open_chosen("auto").name for _ in range(3)] == ["portable"] * 3
    said = capsys.readouterr().err.splitlines()
    assert said == [f"cpu: {ABSENT}; until then the portable backend is used, which is slow"]


def test_who_asks_for_portable_or_for_its_options_is_told_nothing(absent, capsys):
    assert open_chosen("portable").name == open_chosen("auto", {"widen_bytes": 0}).name == "portable"
    assert not capsys.readouterr().err


def test_who_asks_for_a_compiled_backend_gets_no_other(absent):
    with pytest.raises(BackendMissing, match=ABSENT):
        open_chosen("cpu")
    with pytest.raises(BackendMissing, match=f"cpu: {ABSENT}\nportable: has no option threads"):
        open_chosen("auto", {"threads": 2})


def test_values_that_only_another_backend_takes_are_passed_over(compiled):
    assert unfit("cpu", {"kv": "q8"}) == "kv is 'f16' or 'f32', not 'q8'"
    assert unfit("cpu", {"kv": "f32", "threads": 3}) == unfit("cpu", {"threads": None}) == ""
    with pytest.raises(BackendMissing, match="cpu: kv is 'f16' or 'f32', not 'q8'\nportable: has no option"):
        open_chosen("auto", {"kv": "q8"})


def test_numba_that_is_not_installed_is_named_with_its_cure(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", "kernels.cpu.backend:Cpu")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendMissing, match=r"numba.* not installed; pip install numba"):
        open_chosen("cpu")


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, "/home/me/.cache/headrace"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/headrace"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/headrace"),
        ("freebsd14", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/headrace"),
        ("darwin", {"XDG_CACHE_HOME": "/elsewhere"}, "/home/me/Library/Caches/headrace"),
        ("win32", {}, "/home/me/AppData/Local/headrace"),
    ],
)
def test_kernels_are_kept_where_the_system_keeps_such_things(platform, environ, folder):
    assert cache_folder(environ, platform, Path("/home/me")) == Path(folder)


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder({}, "linux") is None


class Gpu:
    """Counts the kernels it is asked for."""

    name = "NVIDIA T4"

    def __init__(self):
        self.asked: list[tuple[str, str]] = []

    def kernel(self, file: str, name: str) -> None:
        self.asked.append((file, name))


@pytest.mark.parametrize(("slow_s", "told"), [(0.0, True), (60.0, False)])
def test_every_kernel_of_a_gpu_is_there_before_the_first_step(monkeypatch, slow_s, told):
    monkeypatch.setattr(opening, "SLOW_S", slow_s)
    gpu, said = Gpu(), []
    compile_kernels(gpu, said.append, UNUSED)
    used = {(file, name) for file in {*FILES} - UNUSED for name in kernels(file)}
    assert set(gpu.asked) == used and len(gpu.asked) == len(used)
    assert bool(said) == told
    if told:
        assert said[0] == "compiling kernels for NVIDIA T4, once for this machine"
        assert len(said) == 2 and said[1].startswith("compiled in ")


class OnGpu(Cuda):
    """The CUDA backend on a `Gpu`."""

    def __init__(self):
        self.device = Gpu()


def test_only_who_is_about_to_work_waits_for_kernels(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cuda", f"{HERE}:OnGpu")
    assert open_chosen("cuda").device.asked and not open_chosen("cuda", ready=False).device.asked
    opened = dict(doctor._opened())["cuda"]
    assert isinstance(opened, OnGpu) and not opened.device.asked
