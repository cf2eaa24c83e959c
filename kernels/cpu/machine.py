"""The door to LLVM: what the host can do, code for it, and that code made callable.

A *library* is one object file with every kernel of one instruction set. It is built once, kept in a folder of
the user's (cache.py), and loaded once per process.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kernels.cpu import objects
from kernels.errors import BackendMissing, CompileError

LIBRARIES = ("numba", "llvmlite")
CURE = "pip install numba"
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """Loaded kernels.

    codes : address of each kernel, by name
    run, wake, assist : the executor, as functions that let go of the interpreter while they run
    height : rows of a block kind that are interleaved
    tile : query rows that attention takes at once
    seeds : for each block kind, what the sum of x's bytes is multiplied with to start a sum
    held : what must live as long as the code
    """

    isa: str
    codes: Mapping[str, int]
    run: Callable[[int, int, int, int], int]
    wake: Callable[[int, int], int]
    assist: Callable[[int, int, int], int]
    height: int
    tile: int
    seeds: Mapping[str, int]
    held: Any


def require() -> None:
    """BackendMissing unless the libraries that compile are installed."""
    absent = [name for name in LIBRARIES if not _installed(name)]
    if absent:
        raise BackendMissing(f"{' and '.join(absent)} not installed; {CURE}")


@cache
def host() -> tuple[str, frozenset[str]]:
    """The processor's name in LLVM's words, and its features."""
    import llvmlite.binding as llvm

    _begin()
    try:
        features = {name for name, on in llvm.get_host_cpu_features().items() if on}
    except RuntimeError:  # LLVM does not know how to ask this system
        features = set()
    name = llvm.get_host_cpu_name()
    if name.startswith("apple-"):
        features |= {"neon", "dotprod"}  # of every one of them, and macOS is one of those systems
    return name, frozenset(features)


def usable() -> list[str]:
    """Instruction sets the host can run, best first."""
    from kernels.cpu.native.sets import SETS

    return [name for name, isa in SETS.items() if isa.needs <= host()[1]]


def choose(isa: str) -> str:
    """`isa`, or with "auto" the best the host can run.

    Raises
    ------
    BackendMissing   if there is no such instruction set, or not here
    """
    from kernels.cpu.native.sets import SETS

    if isa == "auto":
        return usable()[0]
    if isa not in SETS:
        known = ", ".join(SETS)
        raise BackendMissing(f"cpu: no instruction set is called {isa!r}; there are {known} and auto")
    if isa not in usable():
        lacking = ", ".join(sorted(SETS[isa].needs - host()[1]))
        raise BackendMissing(f"cpu: {isa} needs {lacking}, which {host()[0]} lacks; here are {usable()}")
    return isa


def library(isa: str, folder: Path | None, report: Report | None = None) -> Library:
    """The kernels of an instruction set: as this process has them, from `folder`, or newly built.

    folder : where object files are kept between processes; None keeps them nowhere
    report : told when a build begins (some ten seconds), and how it went

    Raises
    ------
    CompileError   if they do not build
    """
    lock, held = _shelf(isa)
    with lock:
        if not held:
            held.append(_kept(isa, folder) or _built(isa, folder, report or _silent))
        return held[0]


@cache
def _shelf(isa: str) -> tuple[threading.Lock, list[Library]]:
    """What this process holds of an instruction set, at most one library."""
    return threading.Lock(), []


def _kept(isa: str, folder: Path | None) -> Library | None:
    code = objects.read(folder, fingerprint(isa)) if folder else None
    try:
        return None if code is None else _load(isa, code)
    except (CompileError, LookupError, TypeError, ValueError, RuntimeError):
        return None  # whole, but not what this program writes


def _built(isa: str, folder: Path | None, report: Report) -> Library:
    report(f"compiling kernels for {isa}; this happens once on a machine")
    begun = time.perf_counter()
    code = build(isa)
    report(f"compiled in {time.perf_counter() - begun:.1f} s")
    if folder and not objects.write(folder, fingerprint(isa), code):
        report(f"{folder} cannot be written, or not by its owner alone: the next start compiles again")
    return _load(isa, code)


def fingerprint(isa: str) -> str:
    """What compiled code depends on: sources, compilers, processor, instruction set."""
    from importlib.metadata import version

    facts = [isa, platform.machine(), platform.system(), host()[0], *sorted(host()[1])]
    facts += [f"{name} {version(name)}" for name in LIBRARIES]
    digest = hashlib.sha256("\n".join(facts).encode())
    here = Path(__file__).parent
    for source in (Path(__file__), *sorted((here / "native").glob("*.py"))):
        digest.update(source.read_bytes())
    return f"{isa}-{digest.hexdigest()[:32]}"


def build(isa: str) -> bytes:
    """The library of an instruction set, compiled here and now: a line of JSON, then an object file.

    Raises
    ------
    BackendMissing   numba is there but does not import, as beside a NumPy that is too new for it
    CompileError     LLVM or numba refuses
    """
    import llvmlite.binding as llvm

    try:
        from kernels.cpu.native import library as native
    except ImportError as wrong:
        raise BackendMissing(f"numba does not import: {wrong}; {CURE} --upgrade") from wrong
    from kernels.cpu.native.sets import SETS

    chosen = SETS[isa]
    name, features = host()
    machine = target(chosen.cpu or name, "" if chosen.cpu else ",".join(f"+{f}" for f in sorted(features)))
    try:
        module = optimised(native.emitted_text(chosen), machine)
        for text in native.compiled_texts():
            module.link_in(llvm.parse_assembly(text))
        module.verify()
        return json.dumps(native.facts(chosen)).encode() + b"\n" + machine.emit_object(module)
    except RuntimeError as wrong:
        raise CompileError(f"LLVM does not compile the kernels for {isa}: {wrong}") from wrong


def target(cpu: str, features: str, triple: str | None = None) -> Any:
    """LLVM's description of what to compile for; the host's triple unless said."""
    import llvmlite.binding as llvm

    _begin()
    made = llvm.Target.from_triple(triple or llvm.get_process_triple())
    return made.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )


def optimised(text: str, machine: Any) -> Any:
    """A module of LLVM text, optimised for a target machine."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return module


def _load(isa: str, built: bytes) -> Library:
    """Raises CompileError for code that lacks what its first line names."""
    import llvmlite.binding as llvm

    line, _, code = built.partition(b"\n")
    facts = json.loads(line)
    kernels, entries = facts["kernels"], facts["executor"]  # LLVM is not asked about what has no such line
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target(host()[0], ""))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    codes = {name: engine.get_function_address(name) for name in (*kernels, *entries)}
    absent = [name for name, address in codes.items() if not address]
    if absent:
        raise CompileError(f"the kernels for {isa} lack {', '.join(absent)}")
    word = ctypes.c_int64
    executor = {name: ctypes.CFUNCTYPE(word, *[word] * n)(codes.pop(name)) for name, n in entries.items()}
    return Library(
        isa, MappingProxyType(codes), **executor, height=facts["height"], tile=facts["tile"],
        seeds=facts["seeds"], held=engine,
    )  # fmt: skip


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


@cache
def _begin() -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def _silent(line: str) -> None:
    pass
