"""From a .cu file to a shared object for this CPU, kept under a name made of everything it came from."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from kernels import BackendMissing, CompileError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "emulator"

FLAGS = (
    "-std=c++17", "-fPIC", "-shared",
    "-ffp-contract=off",  # a product and a sum stay two roundings
    "-fno-strict-aliasing",  # CUDA code reads words as halves, as its own compiler allows
)  # fmt: skip
MODES = {  # flags for the kernels alone; the runtime is never instrumented
    "plain": ("-O2",),
    "poison": ("-O2",),
    "asan": ("-O1", "-g", "-fsanitize=address"),
    "ubsan": ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
}
RUNTIMES = {"asan": "libasan.so", "tsan": "libtsan.so"}  # these must be in the process before Python is

_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\((\d+)[^)]*\)\s+)?(\w+)\s*\(')
_ROOM = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")


@cache
def compiler() -> str:
    """g++ or clang++, or what CXX names.

    Raises
    ------
    BackendMissing   where there is none, or the machine is not one that the runtime is written for
    """
    if not sys.platform.startswith("linux"):
        raise BackendMissing(f"the emulator runs on Linux, not on {sys.platform!r}")
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        found = name and shutil.which(name)
        if found:
            return found
    raise BackendMissing("the emulator needs a C++ compiler; install g++ or clang++, or name one in CXX")


def bounds(text: str) -> dict[str, int]:
    """The kernels of a source text, each with the most threads its launch bounds allow."""
    return {name: int(most or 1024) for most, name in _KERNEL.findall(text)}


def runtime() -> Path:
    """The fibers and barriers that every kernel calls."""
    return _build((HERE / "runtime.cpp").read_text(encoding="utf-8"), "runtime", ("-O2",))


def library(text: str, name: str, mode: str) -> Path:
    """The kernels of the .cu source `text`, called `name` in messages.

    One thing is rewritten: dynamic shared memory, an array without a size, becomes a pointer.

    Raises
    ------
    CompileError   with what the compiler said
    """
    kernels = bounds(text)
    text = _ROOM.sub(r"[[maybe_unused]] \1* const \2 = (\1*)emulated_shared;", text)
    exports = "".join(f"EMULATED_EXPORT({kernel})\n" for kernel in kernels)
    whole = ["#include <cuda_fp16.h>", f'#line 1 "{name}.cu"', text, '#line 1 "exports"', exports]
    flags = ("-fvisibility=hidden", "-DEMULATED", *MODES[mode])
    return _build("\n".join([*whole, "EMULATED_STATICS\n"]), name, flags)


def preloaded(mode: str) -> dict[str, str]:
    """The environment in which a fresh process may load what `mode` builds."""
    settings = {
        "PYTHONMALLOC": "malloc",  # arrays then lie in memory that the sanitizer sees the ends of
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "OPENBLAS_NUM_THREADS": "1",  # TSan does not see how a BLAS's own threads meet
        "OMP_NUM_THREADS": "1",
    }
    if mode in RUNTIMES:
        asked = [compiler(), f"-print-file-name={RUNTIMES[mode]}"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            raise BackendMissing(f"{mode}: {compiler()} has no {RUNTIMES[mode]}; install that library")
        settings["LD_PRELOAD"] = found
    return {**os.environ, **settings}


def run_apart(mode: str, module: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m module args` where `mode` works; `more` joins its environment.

    Raises
    ------
    BackendMissing   where the sanitizer itself cannot start
    """
    command = [sys.executable, "-m", module, *args]
    environment = {**preloaded(mode), **more}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in ran.stderr:  # older TSan, newer kernel
        raise BackendMissing(f"{mode}: addresses are too random for it; sysctl vm.mmap_rnd_bits=28 helps")
    return ran


def check_preloaded(mode: str) -> None:
    """Loading a sanitizer late would end the process."""
    symbol = {"asan": "__asan_init", "tsan": "__tsan_init"}.get(mode)
    if symbol is not None and not hasattr(ctypes.CDLL(None), symbol):
        raise BackendMissing(f"{mode}: start Python in the environment that build.preloaded({mode!r}) gives")


@cache
def _headers() -> bytes:
    files = sorted([*HERE.glob("include/*.h"), *HERE.glob("*.h")])
    return b"\0".join(file.read_bytes() for file in files)


def _build(text: str, name: str, flags: tuple[str, ...]) -> Path:
    command = [compiler(), *FLAGS, *flags, "-I", str(HERE / "include"), "-I", str(HERE)]
    parts = [_headers(), text.encode(), "\0".join(command).encode()]
    built = CACHE / f"{name}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if built.exists():
        return built
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as room:  # a process that builds the same only does it twice
        source, made = Path(room, f"{name}.cpp"), Path(room, "made.so")
        source.write_text(text, encoding="utf-8")
        command += [str(source), "-o", str(made)]
        plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # not the compiler
        ran = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise CompileError(f"{name}: {compiler()} refused it:\n{ran.stderr}")
        made.replace(built)
    return built
