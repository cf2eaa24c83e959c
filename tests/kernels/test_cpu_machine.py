"""Code of the cpu backend: chosen for the machine, compiled for it, kept where only its owner can write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import BackendMissing, KernelError

pytest.importorskip("numba")

from kernels.cpu import machine, objects
from kernels.cpu.backend import Cpu
from kernels.cpu.native import library
from kernels.cpu.native.library import emitted_text
from kernels.cpu.native.sets import SETS

ROOT = Path(__file__).parent.parent.parent
TARGETS = {  # instruction set -> processor, triple
    "avx512": ("sapphirerapids", "x86_64-unknown-linux-gnu"),
    "avx2": ("x86-64-v3", "x86_64-unknown-linux-gnu"),
    "generic": ("x86-64", "x86_64-unknown-linux-gnu"),
    "neon": ("neoverse-n1", "aarch64-unknown-linux-gnu"),
}


def assembly(isa: str) -> str:
    processor, triple = TARGETS[isa]
    target = machine.target(processor, "", triple)
    return target.emit_assembly(machine.optimised(emitted_text(SETS[isa]), target))


def function(text: str, name: str) -> str:
    """The lines of one function of an assembly text."""
    rest = text[text.index(f"\n{name}:") + len(name) + 2 :]
    return re.split(r"^\w+:", rest, maxsplit=1, flags=re.MULTILINE)[0]


def python(code: str) -> tuple[int, str, str]:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


# --- code


def test_arm_code_has_the_dot_product():
    """Code generation alone: these instructions do not run on the machine that writes them."""
    text = assembly("neon")
    for kernel in ("q4_0_int8", "q8_0_int8"):
        assert function(text, kernel).count("sdot") >= 32, kernel
    assert "fcvtl" in function(text, "dense_f16"), "halves are converted by an instruction"
    assert not re.search(r"^\s+bl\s", text, re.MULTILINE), "nothing is called"


def test_x86_code_has_its_dot_products_and_no_wider_registers():
    widest, middle = assembly("avx512"), assembly("avx2")
    assert function(widest, "q4_0_int8").count("vpdpbusd") >= 8 * 8
    assert "vpermps" in function(widest, "q4_0_f32"), "nibbles are looked up"
    assert function(middle, "q4_0_int8").count("vpmaddubsw") >= 8 * 4
    assert "zmm" not in middle


def test_plain_code_needs_nothing_of_a_processor():
    text = assembly("generic")
    assert "ymm" not in text
    assert not re.search(r"^\s+call", text, re.MULTILINE), "nothing is called, halves and bytes included"


def test_every_instruction_set_here_is_found_and_the_best_is_taken():
    found = machine.usable()
    assert found[-1] == "generic"
    assert Cpu().isa == machine.choose("auto") == found[0]
    assert [name for name in SETS if name in found] == found, "best first"


def test_an_instruction_set_that_is_not_here_is_refused_with_what_it_lacks():
    absent = [name for name in SETS if name not in machine.usable()]
    assert absent, "no machine has them all"
    with pytest.raises(BackendMissing, match=rf"{absent[0]} needs .*lacks"):
        Cpu(isa=absent[0])
    with pytest.raises(BackendMissing, match=r"'sse9'.*generic"):
        Cpu(isa="sse9")


@pytest.mark.parametrize("option", [{"activations": "int4"}, {"kv": "q8"}, {"threads": -1}])
def test_options_are_checked(option):
    with pytest.raises(KernelError, match="cpu: "):
        Cpu(**option)


# --- kept code


def test_a_library_is_loaded_once_per_process(tmp_path):
    said: list[str] = []
    first = machine.library("generic", None, said.append)
    said.clear()
    assert machine.library("generic", tmp_path, said.append) is first
    assert (said, list(tmp_path.iterdir())) == ([], [])


def test_kept_code_comes_back_as_it_was(tmp_path):
    assert objects.read(tmp_path / "absent", "key") is None
    assert objects.write(tmp_path / "new" / "folder", "key", b"code")
    assert objects.read(tmp_path / "new" / "folder", "key") == b"code"
    assert objects.write(tmp_path / "new" / "folder", "key", b"other code")
    assert objects.read(tmp_path / "new" / "folder", "key") == b"other code"
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["key.o"], "no parts left"


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 31, b"x" * 32, b"x" * 100, None])
def test_damaged_code_is_not_there(tmp_path, damage):
    objects.write(tmp_path, "key", b"code" * 100)
    path = tmp_path / "key.o"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    path.chmod(0o600)
    assert objects.read(tmp_path, "key") is None


def test_sound_bytes_that_are_no_library_are_built_anew(tmp_path):
    import llvmlite.binding as llvm

    target = machine.target(machine.host()[0], "")
    empty = target.emit_object(machine.optimised("define void @other() {\n ret void\n}\n", target))
    assert llvm.ObjectFileRef.from_data(empty), "it is an object file"
    facts = json.dumps(library.facts(SETS["generic"])).encode()
    for content in (facts + b"\n" + empty, b"no facts", b"{}\n" + empty, b"[]\n", b"\xff\n"):
        objects.write(tmp_path, machine.fingerprint("generic"), content)
        assert machine._kept("generic", tmp_path) is None, content[:9]


@pytest.mark.skipif(sys.platform == "win32", reason="who may write is not a mode there")
def test_code_that_others_could_have_written_is_not_run(tmp_path):
    objects.write(tmp_path / "mine", "key", b"code")
    (tmp_path / "mine" / "key.o").chmod(0o666)
    assert objects.read(tmp_path / "mine", "key") is None
    objects.write(tmp_path / "mine", "key", b"code")
    (tmp_path / "mine").chmod(0o777)
    assert objects.read(tmp_path / "mine", "key") is None
    assert not objects.write(tmp_path / "mine", "key", b"code")


def test_a_folder_that_cannot_be_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert not objects.write(tmp_path / "file" / "folder", "key", b"code")
    assert objects.read(tmp_path / "file" / "folder", "key") is None


def test_only_the_newest_code_is_kept(tmp_path):
    for i in range(objects.KEPT + 3):
        assert objects.write(tmp_path, f"key-{i}", b"code")
        path = tmp_path / f"key-{i}.o"
        os.utime(path, (i, i))
    assert len(list(tmp_path.glob("*.o"))) == objects.KEPT
    assert objects.read(tmp_path, f"key-{objects.KEPT + 2}") == b"code"


def test_the_fingerprint_tells_instruction_sets_and_machines_apart(monkeypatch):
    before = {machine.fingerprint(isa) for isa in SETS}
    assert len(before) == len(SETS)
    monkeypatch.setattr(machine, "host", lambda: ("another", frozenset({"avx2"})))
    assert not before & {machine.fingerprint(isa) for isa in SETS}


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    code = f"""
from kernels.cpu.backend import Cpu
said = []
Cpu(isa="generic", cache={str(tmp_path / "kept")!r}, report=said.append)
print([line.split(" ")[0] for line in said])
"""
    for expected in ("['compiling', 'compiled']", "[]"):
        assert python(code) == (0, expected + "\n", "")


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)
sys.meta_path.insert(0, Refuse())
import kernels, kernels.cpu.backend
from kernels import BackendMissing
try:
    kernels.cpu.backend.Cpu()
except BackendMissing as reason:
    print(reason)
"""


def test_without_numba_the_backend_says_what_to_install():
    assert python(WITHOUT) == (0, "numba and llvmlite not installed; pip install numba\n", "")


def test_kernels_do_not_import_numba():
    code = "import sys, kernels, kernels.cpu.backend as b; print({'numba', 'llvmlite'} & set(sys.modules))"
    assert python(code) == (0, "set()\n", "")
