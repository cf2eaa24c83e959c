"""Opening the backend that a graph names, with what only this machine and its user can say.

The environment is read here and nowhere below: HEADRACE_CPU_ISA, and where programs keep what can be made
again. What has to be compiled is compiled here too, and said.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kernels import Backend, BackendMissing, open_backend
from kernels.backend import BACKENDS
from kernels.cuda.backend import Cuda
from kernels.cuda.device import Device
from kernels.cuda.source import FILES, kernels, source
from pipeline.backends import AUTO, backend_class, unfit
from pipeline.errors import GraphError
from pipeline.progress import say

ISA_VARIABLE = "HEADRACE_CPU_ISA"  # an instruction set for the backend cpu, where the graph names none
COMPILED, PLAIN = "cpu", "portable"  # what auto finds on most machines, and what works on all
SLOW_S = 0.3  # for one file of CUDA kernels: compiled ones are read back in a tenth of it
UNUSED = frozenset({"probe"})  # files that only measurements need

Say = Callable[[str], None]


def open_chosen(
    name: str, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None, *,
    ready: bool = True,
) -> Backend:
    """The backend that a graph names, or with "auto" the best that opens and takes its options.

    options : by keyword, as in `Graph.backend_options`; environ : by default the process's own
    ready : with all kernels of a GPU compiled, which takes a while the first time

    Kernels are compiled where they have not been, and standard error says so. Where "auto" has to do without
    compiled kernels the reason is said once.

    Raises
    ------
    BackendMissing   with one line per backend that was tried and why it was passed over
    GraphError       HEADRACE_CPU_ISA names an instruction set that is not to be had here
    """
    options, environ = options or {}, os.environ if environ is None else environ
    if name != AUTO:
        return _open(name, options, environ, ready)
    reasons: dict[str, str] = {}
    for candidate in reversed(BACKENDS):
        if reason := unfit(candidate, options):
            reasons[candidate] = f"{candidate}: {reason}"
            continue
        try:
            found = _open(candidate, options, environ, ready)
        except BackendMissing as missing:
            reasons[candidate] = str(missing)
            continue
        if candidate == PLAIN and COMPILED in reasons and not unfit(COMPILED, options):
            say_once(f"{reasons[COMPILED]}; until then the {PLAIN} backend is used, which is slow")
        return found
    raise BackendMissing("\n".join(reasons.values()))


def compile_kernels(device: Device, report: Say, leave_out: frozenset[str] = frozenset()) -> None:
    """Every kernel of a GPU, compiled or read back; `report` is told where that takes long.

    Otherwise each is compiled in the middle of the first step that needs it.
    """
    started, told = time.perf_counter(), False
    for file in sorted({*FILES} - leave_out, key=lambda file: len(source(file))):  # short ones tell soon
        begun = time.perf_counter()
        for kernel in kernels(file):
            device.kernel(file, kernel)
        if not told and time.perf_counter() - begun > SLOW_S:
            report(f"compiling kernels for {device.name}, once for this machine")
            told = True
    if told:
        report(f"compiled in {time.perf_counter() - started:.1f} s")


def cache_folder(
    environ: Mapping[str, str] | None = None, platform: str = sys.platform, home: Path | None = None
) -> Path | None:
    """Where this user's compiled kernels are kept; None for a user without a home.

    Source: the XDG Base Directory Specification, which has relative paths ignored; for other systems what
    Apple and Microsoft ask of applications.
    """
    environ = os.environ if environ is None else environ
    stated = Path(environ.get("LOCALAPPDATA" if platform == "win32" else "XDG_CACHE_HOME", ""))
    if platform != "darwin" and stated.is_absolute():
        return stated / "headrace"
    try:
        home = home or Path.home()
    except RuntimeError:
        return None
    usual = {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(platform, ".cache")
    return home / usual / "headrace"


@cache
def say_once(text: str) -> None:
    """`say`, the first time in this process."""
    say(text)


@cache
def reporter(name: str) -> Say:
    """What a backend tells its user with, always the same function."""
    return lambda line: say(f"{name}: {line}")


def _open(name: str, options: Mapping[str, Any], environ: Mapping[str, str], ready: bool) -> Backend:
    """With what no graph may say, where the class takes it."""
    taken = inspect.signature(backend_class(name)).parameters if name in BACKENDS else {}
    ours: dict[str, Any] = {"cache": cache_folder(environ), "report": reporter(name)}
    given = {**{key: value for key, value in ours.items() if key in taken}, **options}
    forced = environ.get(ISA_VARIABLE, "") if "isa" in taken and "isa" not in options else ""
    try:
        backend = open_backend(name, **given, **({"isa": forced} if forced else {}))
    except BackendMissing as reason:
        if not forced:
            raise
        raise GraphError(f"{ISA_VARIABLE}={forced}: {reason}") from reason
    if ready and isinstance(backend, Cuda):
        compile_kernels(backend.device, reporter(name), UNUSED)
    return backend
