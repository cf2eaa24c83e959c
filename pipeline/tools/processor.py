"""What `doctor` says of the backend cpu: its compiler, its instruction set, its threads and what it keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import metadata

from kernels import BackendMissing
from kernels.cpu import machine, objects
from kernels.cpu.team import cores
from pipeline.opening import ISA_VARIABLE
from pipeline.tools.findings import NOTE, OK, WARNING, Row
from pipeline.tools.kept import cpu_kernels
from pipeline.tools.machine import cores as allowed_cores
from pipeline.tools.machine import size

WARM = "python -m pipeline warmup"


def cpu_rows(environ: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Looked at without compiling anything."""
    environ = os.environ if environ is None else environ
    try:
        machine.require()
        known = machine.usable()
    except BackendMissing as reason:
        said, _, cure = str(reason).removeprefix("cpu: ").partition("; ")
        yield "compiler", WARNING, f"{said}: the slow portable backend is used", cure
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in machine.LIBRARIES)
    yield "compiler", OK, versions, ""
    forced = environ.get(ISA_VARIABLE, "")
    try:
        chosen = machine.choose(forced or "auto")
    except BackendMissing as reason:
        said = str(reason).removeprefix("cpu: ")
        yield "instruction set", WARNING, f"{ISA_VARIABLE}={forced}: {said}", f"unset {ISA_VARIABLE}"
        return
    others = [name for name in known if name != chosen]
    why = f"forced by {ISA_VARIABLE}" if forced else f"the best that {machine.host()[0]} has"
    also = f"; here also: {', '.join(others)}" if others else ""
    yield "instruction set", OK, f"{chosen}, {why}{also}", ""
    yield "threads", OK, _threads(cores(), allowed_cores(), os.cpu_count() or 1), ""
    yield _kept(chosen, environ)


def _threads(chosen: int, allowed: int, there: int) -> str:
    """How many, and what the number comes from."""
    if chosen < allowed:
        return f"{chosen}, the quota of this control group (cpu.max), of {allowed} cores"
    if allowed < there:
        return f"{chosen}, the cores this process is bound to (affinity), of {there}"
    return f"{chosen}, all cores of this machine"


def _kept(isa: str, environ: Mapping[str, str]) -> Row:
    """Whether the next start has to compile."""
    kept = cpu_kernels(environ)
    if code := objects.read(kept.folder, machine.fingerprint(isa)):
        return "kernels", OK, f"compiled for {isa}, {size(len(code))} in {kept.folder}", ""
    if not kept.writable:
        return "kernels", WARNING, f"{kept.folder} cannot be written: every start compiles them", kept.cure
    said = f"none for {isa} in {kept.folder} yet; the first run compiles them"
    return "kernels", NOTE, said, f"or now: {WARM}"
