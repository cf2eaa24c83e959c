"""Compiled kernels between two starts: which folder keeps them, how many, and whether more can be written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernels import Backend
from pipeline.opening import cache_folder
from pipeline.tools.machine import size

HOW_CUDA, HOW_CPU = "set CUPY_CACHE_DIR to a folder that can be", "set XDG_CACHE_HOME to a folder that can be"


@dataclass(frozen=True, slots=True)
class Kept:
    """What one folder keeps.

    writable : files can be added, the folder being made for that if need be
    cure : what to do where they cannot
    """

    folder: Path
    files: int
    nbytes: int
    writable: bool
    cure: str

    def __str__(self) -> str:
        return f"{self.files} file{'s' * (self.files != 1)} in {self.folder}, {size(self.nbytes)}"


def kept_for(backend: Backend) -> Kept | None:
    """What is kept for the kernels of a backend; None where it compiles nothing."""
    looks = {"cpu": cpu_kernels, "cuda": cuda_kernels}
    return looks[backend.name]() if backend.name in looks else None


def cpu_kernels(environ: Mapping[str, str] | None = None) -> Kept:
    """Object files, one for each instruction set; a user without a home has no place for them."""
    folder = cache_folder(environ)
    return Kept(Path("~"), 0, 0, False, HOW_CPU) if folder is None else _look(folder, "*.o", HOW_CPU)


def cuda_kernels(environ: Mapping[str, str] | None = None) -> Kept:
    """What CuPy keeps: without that, every start compiles all kernels anew."""
    named = (os.environ if environ is None else environ).get("CUPY_CACHE_DIR")
    return _look(Path(named or "~/.cupy/kernel_cache").expanduser(), "*.cubin", HOW_CUDA)


def _look(folder: Path, pattern: str, cure: str) -> Kept:
    sizes = [file.stat().st_size for file in folder.glob(pattern)]
    parent = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return Kept(folder, len(sizes), sum(sizes), parent.is_dir() and os.access(parent, os.W_OK), cure)
