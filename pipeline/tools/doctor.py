"""`doctor`: what works on this machine, what is missing, and the cure. It never fails."""

from __future__ import annotations

import locale
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path

import graphs
from kernels import Backend, BackendMissing
from kernels.backend import BACKENDS
from kernels.cuda.card import look
from kernels.cuda.diagnosis import Facts, diagnose, version
from pipeline.ends import file as audio_files
from pipeline.ends.mic import list_devices
from pipeline.errors import GraphError, SourceError
from pipeline.graph import load_graph
from pipeline.opening import open_chosen
from pipeline.room import SMALLER, room_for
from pipeline.tools import machine
from pipeline.tools.findings import MISSING, NOTE, OK, WARNING, Finding, Report, Row
from pipeline.tools.kept import cuda_kernels
from pipeline.tools.processor import WARM, cpu_rows
from pipeline.tools.vocabulary import vocabulary
from stages import StageError
from stages.voxtral.names import open_checkpoint

DISTRIBUTION = "headrace"
PACKAGES = ("pipeline", "stages", "kernels", "graphs")
EXTRAS = {"mic": "to hear a microphone", "evaluate": "to measure error rates"}
REINSTALL = f"pip install --force-reinstall {DISTRIBUTION}"
OWN_ENVIRONMENT = f"a virtual environment of its own for {DISTRIBUTION} keeps them apart"
NO_GPU_NEEDED = "all works without it, on the processor"
CONTAINERS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")  # what recordings usually come in


def examine() -> Report:
    """Look at everything; what cannot even be looked at is reported too."""
    return Report(tuple(f for section, look in SECTIONS.items() for f in _looked(section, look)))


def built_in(weights: str | Path) -> bool:
    """Whether `weights` is the model that ships inside the package `graphs`."""
    return Path(weights).resolve().is_relative_to(_models().resolve())


def _models() -> Path:
    return Path(graphs.__file__).parent / "models"


def _looked(section: str, look: Callable[[], Iterable[Row]]) -> Iterator[Finding]:
    try:
        yield from (Finding(section, *row) for row in look())
    except Exception as error:  # a doctor that falls ill helps nobody
        yield Finding(section, "examination", WARNING, f"stopped by {type(error).__name__}: {error}")


def _python() -> Iterator[Row]:
    about = machine.describe_machine()
    yield "python", OK, f"{about['python']} at {sys.executable}", ""
    yield "machine", OK, f"{about['cpu']}, {about['cores']} cores, {about['system']}", ""
    threads, said = about["threads"]
    yield "numpy", OK, f"{about['numpy']} with {about['blas']}, {threads} threads ({said})", ""


def _places() -> Iterator[Row]:
    """Our package names are common words; another package of that name may stand in front."""
    home = Path(__file__).resolve().parents[2]
    owners = metadata.packages_distributions()
    for name in PACKAGES:
        place = Path(import_module(name).__file__ or "").resolve().parent
        others = sorted(set(owners.get(name, ())) - {DISTRIBUTION})
        if place.parent != home:
            cure = f"another package called {name!r} stands in front; {OWN_ENVIRONMENT}"
            yield name, WARNING, f"{place}, but this program is in {home}", cure
        elif others:
            cure = f"pip uninstall {' '.join(others)}; {OWN_ENVIRONMENT}"
            yield name, WARNING, f"{place}; {', '.join(others)} also installs a package called {name!r}", cure
        else:
            yield name, OK, str(place), ""


def _packages() -> Iterator[Row]:
    try:
        version, needs = metadata.version(DISTRIBUTION), metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield DISTRIBUTION, WARNING, "runs from a folder, not installed", "pip install -e . in that folder"
        return
    yield DISTRIBUTION, OK, version, ""
    for need in needs:
        extra = re.search(r"extra == ['\"](\w+)", need)
        if extra is None or extra[1] in EXTRAS:
            yield _package(need, extra[1] if extra else None)


def _package(need: str, extra: str | None) -> Row:
    """One line of our requirements, such as `jiwer>=4; extra == "evaluate"`."""
    wanted = re.match(r"([\w.-]+)(?:\[.*?\])?\s*(?:>=\s*([\d.]+))?", need)
    assert wanted is not None, f"a requirement opens with a name, this one is {need!r}"
    name, least = wanted[1], wanted[2]
    status, purpose = (NOTE, f", needed {EXTRAS[extra]}") if extra else (MISSING, "")
    cure = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{name}>={least or 0}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, status, f"not installed{purpose}", cure
    if least and _numbers(found) < _numbers(least):
        return name, status, f"{found}, but at least {least} is wanted{purpose}", cure
    return name, OK, found, ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _backends() -> Iterator[Row]:
    chosen = ""
    for name, found in _opened():
        if isinstance(found, Exception):
            yield name, NOTE, f"passed over: {str(found).removeprefix(f'{name}: ')}", ""
            continue
        chosen = chosen or name
        taken = "it" if chosen == name else f"{chosen} instead"
        yield name, OK, f"opens; auto takes {taken}", ""
    if not chosen:
        yield "auto", MISSING, "no backend opens", REINSTALL


def _opened() -> Iterator[tuple[str, Backend | Exception]]:
    """Every backend, the best first, or why it does not open."""
    for name in reversed(BACKENDS):
        try:
            yield name, open_chosen(name, ready=False)
        except (BackendMissing, GraphError) as reason:
            yield name, reason


def _cuda() -> Iterator[Row]:
    yield from cuda_rows(look(), machine.nvidia_driver())


def cuda_rows(facts: Facts, driver: str | None) -> Iterator[Row]:
    """What was found on the way to an NVIDIA GPU, then what is missing; `driver` is its version."""
    if facts.driver:
        name = f"{driver}, " if driver else ""
        yield "driver", OK, f"{name}runs programs made for CUDA up to {version(facts.driver)}", ""
    if facts.version:
        yield "CuPy", OK, f"{facts.package} {facts.version}, made for CUDA {version(facts.built)}", ""
    if facts.name:
        free, total = map(machine.size, facts.memory)
        yield "device", OK, f"{facts.name}, compute capability {'.'.join(map(str, facts.capability))}", ""
        yield "memory", OK, f"{free} of {total} are free", ""
    if facts.compiler:
        headers = "" if facts.build_fault else ", and its headers are there"
        yield "compiler", OK, f"NVRTC {'.'.join(map(str, facts.compiler))}{headers}", ""
    if facts.importable:
        yield _kernel_cache()
    if reason := diagnose(facts):
        said, _, cure = reason.partition("; ")
        tried = facts.importable and facts.driver  # else nobody meant to use one
        yield "cuda", WARNING if tried else NOTE, said if tried else f"{said}; {NO_GPU_NEEDED}", cure


def _kernel_cache() -> Row:
    """Without what CuPy keeps, every start compiles all kernels anew."""
    kept = cuda_kernels()
    if not kept.writable:
        return "kernels", WARNING, f"{kept.folder} cannot be written", kept.cure
    if not kept.files:
        return "kernels", NOTE, f"none in {kept.folder} yet; the first run compiles them", f"or now: {WARM}"
    return "kernels", OK, f"compiled ones: {kept}", ""


def _weights() -> Iterator[Row]:
    """The model that graphs use now, then the one that ships if that is another."""
    try:
        graph = load_graph("file")
    except GraphError as error:
        yield "graph file", MISSING, str(error), REINSTALL
        return
    chosen = Path(graph.weights or "")
    yield from _model(chosen, "built in" if built_in(chosen) else "named by VOXTRAL", MISSING)
    if not built_in(chosen):
        for folder in sorted(path.parent for path in _models().glob("*/params.json")):
            yield from _model(folder, "built in, used where VOXTRAL and --weights are unset", NOTE)


def _model(path: Path, why: str, status: str) -> Iterator[Row]:
    try:
        checkpoint = open_checkpoint(path)
    except StageError as error:
        cure = REINSTALL if built_in(path) else "unset VOXTRAL to use the built-in model"
        yield path.name, status, f"{error} ({why})", cure
        return
    entries = checkpoint.weights.entries.values()
    kinds = ", ".join(sorted({entry.kind for entry in entries}))
    stored = sum(entry.nbytes for entry in entries)
    yield path.name, OK, f"{path} ({why}), {machine.size(stored)} of {kinds}", ""
    words = vocabulary(checkpoint.tekken)
    yield "knows", OK if words.open else NOTE, words.summary, words.limits
    for name, backend in _opened():
        if not isinstance(backend, Exception):
            room = room_for(checkpoint, backend)
            status = NOTE if room.free is None else OK if room.fits else WARNING
            yield f"memory on {name}", status, str(room), "" if room.fits else SMALLER


def _audio() -> Iterator[Row]:
    library = audio_files.soundfile
    formats = library.available_formats()
    known = [name for name in CONTAINERS if name in formats]
    more = f"{', '.join(known)} and {len(formats) - len(known)} more formats"
    versions = f"{library.__version__} with libsndfile {library.__libsndfile_version__}"
    yield "soundfile", OK, f"{versions}: {more}", ""
    for name in CONTAINERS:
        if name not in formats:
            yield name, WARNING, "this libsndfile cannot read it", "pip install --upgrade soundfile"
    try:
        devices = list_devices().splitlines()
    except SourceError as error:
        said, _, cure = str(error).removeprefix("microphone: ").partition("; ")
        yield "microphones", NOTE, said, cure
        return
    listed = [line for line in devices if re.match(r"[* ] *\d", line)]
    for line in listed:
        yield "microphone", OK, line.strip(), ""
    if not listed:
        yield "microphones", NOTE, "; ".join(devices), "plug one in, or start its sound server"


def _terminal() -> Iterator[Row]:
    for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
        encoding = getattr(stream, "encoding", None) or "unknown"
        where = "a terminal" if stream is not None and stream.isatty() else "not a terminal"
        if encoding.lower().replace("-", "").startswith("utf"):
            yield name, OK, f"{encoding}, {where}", ""
        else:
            lost = "letters it does not have become question marks"
            yield name, WARNING, f"{encoding}, {where}: {lost}", "set PYTHONUTF8=1"
    yield "locale", OK, f"{locale.getpreferredencoding(False)}, {platform.system()}", ""


SECTIONS: dict[str, Callable[[], Iterable[Row]]] = {
    "python": _python,
    "where packages come from": _places,
    "packages": _packages,
    "cpu": cpu_rows,  # before it is opened, which compiles
    "backends": _backends,
    "cuda": _cuda,
    "models": _weights,
    "audio": _audio,
    "terminal": _terminal,
}
