"""Calling kernels of a shared object with NumPy arrays, more strictly than a driver would."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kernels import KernelError
from tests.kernels.emulator import build

SHARED_BYTES = {  # dynamic shared memory that one block may ask for
    (7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10,
    (10, 0): 227 << 10, (12, 0): 99 << 10,
}  # fmt: skip
SCALARS = {"f": "f", "i": "i", "u": "i", "b": "i"}  # kind of a NumPy scalar -> of a parameter
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
MOST_THREADS = (1024, 1024, 64)


class LaunchError(KernelError):
    """A launch that a GPU would refuse, misread or never finish."""


class _Parameter(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char), ("target", ctypes.c_char), ("bytes", ctypes.c_ushort),
        ("target_bytes", ctypes.c_ushort), ("target_alignment", ctypes.c_ushort),
    )  # fmt: skip


class _Export(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("count", ctypes.c_int), ("parameters", ctypes.POINTER(_Parameter)),
        ("call", ctypes.c_void_p),
    )  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_void_p), ("args", ctypes.c_void_p), ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_size_t), ("statics", ctypes.c_void_p),
        ("static_bytes", ctypes.c_size_t), ("poison", ctypes.c_int), ("seed", ctypes.c_uint64),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameter:
    """kind, target : p pointer, f float, i whole number, v vectors and the like"""

    kind: str
    bytes: int
    target: str
    target_bytes: int
    target_alignment: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel of a loaded library; `call` runs one thread of it."""

    name: str
    parameters: tuple[Parameter, ...]
    call: int
    most_threads: int
    statics: int
    static_bytes: int


@cache
def entries(text: str, name: str, mode: str) -> Mapping[str, Entry]:
    """Every kernel of the source `text`, built and loaded once."""
    build.check_preloaded(mode)
    _runtime(build.runtime())
    library = ctypes.PyDLL(str(build.library(text, name, mode)))
    start, end = (ctypes.c_void_p * 2).in_dll(library, "emulated_statics")
    found = {}
    for kernel, most_threads in build.bounds(text).items():
        export = _Export.in_dll(library, f"emulated_export_{kernel}")
        parameters = tuple(_parameter(export.parameters[i]) for i in range(export.count))
        found[kernel] = Entry(kernel, parameters, export.call, most_threads, start, end - start)
    return found


def pack(entry: Entry, args: tuple[Any, ...]) -> list[Any]:
    """One ctypes object per argument, holding what the kernel is given.

    CuPy passes the bytes of whatever comes: a Python float is eight of them, also into a parameter of four.

    Raises
    ------
    LaunchError   where an argument is not exactly what its parameter says
    """
    if len(args) != len(entry.parameters):
        raise LaunchError(f"{entry.name}: takes {len(entry.parameters)} arguments, found {len(args)}")
    return [_argument(entry, i, arg) for i, arg in enumerate(args)]


def check_shape(
    entry: Entry, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int, limit: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Grid and block with all three sides.

    Raises
    ------
    LaunchError   where a side, the threads of a block or its shared memory pass a limit of CUDA's or its own
    """
    for what, sides, most in (("grid", grid, MOST_BLOCKS), ("block", block, MOST_THREADS)):
        whole = 1 <= len(sides) <= 3 and all(isinstance(side, (int, np.integer)) for side in sides)
        if not whole or not all(1 <= side <= top for side, top in zip(sides, most, strict=False)):
            raise LaunchError(f"{entry.name}: a {what} has up to three sides of 1 to {most}, found {sides!r}")
    threads = int(np.prod(block))
    if threads > entry.most_threads:
        raise LaunchError(f"{entry.name}: at most {entry.most_threads} threads in a block, found {threads}")
    if not 0 <= shared_mem <= limit:
        raise LaunchError(f"{entry.name}: {shared_mem} bytes of shared memory, but this device has {limit}")
    return _three(grid), _three(block)


def run(
    entry: Entry, grid: tuple[int, ...], block: tuple[int, ...], packed: list[Any], shared_mem: int,
    *, poison: bool, seed: int,
) -> None:  # fmt: skip
    """Every block of the grid.

    Raises
    ------
    LaunchError   where threads wait for each other for ever, or meet where they may not
    """
    args = (ctypes.c_void_p * max(1, len(packed)))(*(ctypes.addressof(value) for value in packed))
    statics = entry.statics, entry.static_bytes
    launch = _Launch(entry.call, ctypes.addressof(args), grid, block, shared_mem, *statics, poison, seed)
    error = ctypes.create_string_buffer(1024)
    if _runtime(build.runtime()).emulated_launch(ctypes.byref(launch), error, ctypes.c_size_t(len(error))):
        raise LaunchError(f"{entry.name}: {error.value.decode()}")


@cache
def _runtime(path: Path) -> ctypes.PyDLL:
    """Loaded for all to see, as kernels call it; PyDLL keeps the lock, so one launch runs at a time."""
    return ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _parameter(raw: _Parameter) -> Parameter:
    target = raw.target.decode(), raw.target_bytes, raw.target_alignment
    return Parameter(raw.kind.decode(), raw.bytes, *target)


def _argument(entry: Entry, i: int, arg: Any) -> Any:
    want, where = entry.parameters[i], f"{entry.name}: argument {i}"
    if isinstance(arg, np.ndarray):
        return _pointer(want, where, arg)
    if not isinstance(arg, np.generic):
        raise LaunchError(f"{where}: pass arrays and NumPy scalars, not {type(arg).__name__}")
    if want.kind == "p":
        if arg.dtype != np.uintp or arg != 0:
            raise LaunchError(f"{where}: a pointer takes an array or NULL, found {arg!r}")
    elif SCALARS.get(arg.dtype.kind) != want.kind or arg.nbytes != want.bytes:
        raise LaunchError(f"{where}: expected kind {want.kind!r} of {want.bytes} bytes, found {arg.dtype}")
    return (ctypes.c_char * want.bytes).from_buffer_copy(arg.tobytes())


def _pointer(want: Parameter, where: str, array: np.ndarray) -> Any:
    if want.kind != "p":
        raise LaunchError(f"{where}: an array of {array.dtype} for a scalar parameter")
    if not array.flags.c_contiguous:
        raise LaunchError(f"{where}: the array {array.shape} is not contiguous")
    typed = array.dtype.itemsize > 1 and want.target != "v"  # bytes may be anything
    kind = "f" if array.dtype.kind == "f" else "i"
    if typed and (kind != want.target or array.dtype.itemsize != want.target_bytes):
        pointer = f"{want.target!r} of {want.target_bytes} bytes"
        raise LaunchError(f"{where}: an array of {array.dtype} for a pointer to {pointer}")
    address, alignment = array.ctypes.data, want.target_alignment
    if address % alignment:
        raise LaunchError(f"{where}: address {address:#x} is not a multiple of {alignment}")
    return ctypes.c_void_p(array.ctypes.data)


def _three(sides: tuple[int, ...]) -> tuple[int, ...]:
    return (*(int(side) for side in sides), 1, 1)[:3]
