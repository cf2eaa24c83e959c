"""As much of CuPy as `Card` asks for, on the host: so that the card's own care is tested where no GPU is.

What is queued runs as late as it may: when somebody waits for it. A host array that is used again too early,
or pinned memory that is, then shows. The semantics are those of CuPy 13 and 14, read in their sources: copies
from and to the host are refused while their stream records, an address knows nothing of strides, what CuPy
would copy by a kernel of its own happens on another stream, and an error that breaks the device meets every
later call.

Kernels are Python functions, or with `emulated_card` those of the backend, run by the emulator.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from kernels.cuda import card
from kernels.cuda.diagnosis import Facts
from tests.kernels.emulator import build, launch

ILLEGAL_ADDRESS, OUT_OF_MEMORY, NOT_READY = 700, 2, 600
FACTS = Facts(importable=True, built=13000, name="a pretended GPU", capability=(9, 0))
Launch = Callable[[tuple, tuple, tuple, int], Callable[[], None]]  # grid, block, args, shared: what will run
NAMES = {
    ILLEGAL_ADDRESS: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    1: "CUDA_ERROR_INVALID_VALUE: invalid argument",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int):
        super().__init__(NAMES.get(status, f"error {status}"))
        self.status = status


class CompileException(Exception):
    """Not a RuntimeError, as with CuPy."""


class Event:
    def __init__(self, gpu: Gpu):
        self.ptr, self._gpu, self._at = id(self), gpu, 0
        gpu.events[self.ptr] = self

    def record(self, stream: Stream) -> None:
        self._gpu.check()
        self._at = stream.queued

    @property
    def status(self) -> int:
        return self._gpu.broken or (0 if self._gpu.stream.ran >= self._at else NOT_READY)

    @property
    def done(self) -> bool:
        return self.status == 0

    def synchronize(self) -> None:
        self._gpu.check()
        self._gpu.stream.run(self._at)
        self._gpu.check()


class Stream:
    """ran, queued : how many pieces of work are over, and how many there have been."""

    def __init__(self, gpu: Gpu):
        self.ptr, self._gpu = 1, gpu
        self._work: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self.ran = 0
        gpu.stream = self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...

    @property
    def queued(self) -> int:
        return len(self._work)

    def push(self, work: Callable[[], None], *, host: bool = False) -> None:
        self._gpu.check()
        if self._recording is None:
            self._work.append(work)
        elif host:
            raise RuntimeError("the current stream is capturing, so transfers are disallowed")
        else:
            self._recording.append(work)

    def run(self, until: int) -> None:
        while self.ran < until:
            self._work[self.ran]()
            self.ran += 1

    def synchronize(self) -> None:
        self.run(self.queued)
        self._gpu.check()

    def begin_capture(self) -> None:
        self._recording = []

    def end_capture(self) -> Any:
        recorded, self._recording = self._recording, None
        assert recorded is not None, "nothing is being recorded"

        def launch(stream: Stream) -> None:
            for work in recorded:
                stream.push(work)

        return SimpleNamespace(upload=lambda stream: None, launch=launch)


class Array(np.ndarray):
    """Device memory; `data` is the pointer CuPy calls so."""

    gpu: Gpu

    def __array_finalize__(self, other: Any) -> None:
        self.gpu = getattr(other, "gpu", None)  # type: ignore[assignment]

    @property
    def data(self) -> Any:  # type: ignore[override]
        """An address, which knows nothing of strides."""

        def memset(value: int, count: int, stream: Stream) -> None:
            stream.push(lambda: self._move(ctypes.memset, value, count))

        def copy(source: Any, count: int, stream: Stream) -> None:
            stream.push(lambda: self._move(ctypes.memmove, source.ptr, count))

        return SimpleNamespace(ptr=self.ctypes.data, memset_async=memset, copy_from_device_async=copy)

    def _move(self, act: Callable[[int, int, int], object], what: int, count: int) -> None:
        act(self.ctypes.data, what, count)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        found = super().reshape(*shape, **options)
        assert not found.size or np.shares_memory(found, self), "CuPy copies this on another stream"
        return found

    def set(self, array: np.ndarray, stream: Stream) -> None:
        assert array.shape == self.shape and array.dtype == self.dtype
        stream.push(lambda: np.copyto(self, array), host=True)

    def get(self, *, stream: Stream, out: np.ndarray, blocking: bool) -> None:
        assert not blocking and out.shape == self.shape
        assert self.flags.c_contiguous, "CuPy copies this on another stream"
        stream.push(lambda: np.copyto(out, self), host=True)


class Raw:
    """A kernel."""

    def __init__(self, gpu: Gpu, prepare: Launch):
        self._gpu, self._prepare, self._limit = gpu, prepare, 48 << 10

    @property
    def kernel(self) -> Callable[..., None]:
        return self._launch

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count: int) -> None:
        if count > self._gpu.shared:
            raise CUDARuntimeError(1)
        self._limit = count
        self._gpu.raised.append(count)

    def _launch(self, grid: tuple, block: tuple, args: tuple, shared_mem: int, stream: Stream) -> None:
        if shared_mem > self._limit:
            raise CUDARuntimeError(1)
        stream.push(self._prepare(grid, block, args, shared_mem))


def of_python(body: Callable[..., None]) -> Launch:
    """A kernel that is a Python function of what a launch passes."""
    return lambda grid, block, args, shared: lambda: body(*args)


def of_cuda(code: str, name: str, most_shared: int) -> Launch:
    """A kernel of the backend, on the emulator."""
    found = re.match(r'#line 1 "(\w+)\.cu"', code)
    assert found, "the text of a file begins with its name"
    entry = launch.entries(code, found[1], "poison")[name]

    def prepare(grid: tuple, block: tuple, args: tuple, shared: int) -> Callable[[], None]:
        sides, packed = launch.check_shape(entry, grid, block, shared, most_shared), launch.pack(entry, args)

        def run(_held: tuple = args) -> None:
            launch.run(entry, *sides, packed, shared, poison=True, seed=0)

        return run

    return prepare


class Gpu:
    """The module `cupy` with a device behind it.

    memory : bytes it has
    kernels : Python functions by name, found in any source text that is not "wrong"; None for the text's own
    broken : the error every call meets, 0 while all is well
    """

    __version__ = "14.2.0"

    def __init__(
        self, memory: int = 1 << 26, kernels: dict[str, Callable[..., None]] | None = None,
        processors: int = 3,
    ):  # fmt: skip
        self.memory, self.used, self.broken, self.shared = memory, 0, 0, 200 << 10
        self.pooled = 512  # bytes that nobody holds and that the driver has not back
        self.kernels, self.raised = kernels, []
        self.events: dict[int, Event] = {}
        self.stream: Stream
        self.pinned: list[np.ndarray] = []
        self.arrays: list[Array] = []  # all of them, as what is queued knows addresses alone
        place = SimpleNamespace(
            attributes={"MultiProcessorCount": processors, "MaxSharedMemoryPerBlockOptin": self.shared},
        )
        self.cuda = SimpleNamespace(
            Device=lambda index: _Place(self, place.attributes), Stream=lambda non_blocking: Stream(self),
            Event=lambda disable_timing=False: Event(self), alloc_pinned_memory=self._pin,
            compiler=SimpleNamespace(CompileException=CompileException),
            runtime=SimpleNamespace(
                eventQuery=lambda ptr: self.events[ptr].status, streamQuery=lambda ptr: self.broken,
                memcpy2DAsync=self._copy_rows, memcpyDeviceToDevice=3,
            ),
        )  # fmt: skip

    def check(self) -> None:
        if self.broken:
            raise CUDARuntimeError(self.broken)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self.check()
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if self.used + count > self.memory:
            raise MemoryError(f"Out of memory allocating {count:,} bytes")
        self.used += count
        array = np.full(count, 0xFF, np.uint8).view(dtype).reshape(shape).view(Array)
        array.gpu = self
        self.arrays.append(array)
        return array

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        array = self.empty(shape, dtype)
        array.data.memset_async(0, array.nbytes, self.stream)
        return array

    def _copy_rows(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: int, stream: int
    ) -> None:
        assert (kind, stream) == (3, self.stream.ptr) and width <= min(to_pitch, pitch)

        def copy() -> None:
            for row in range(height):
                ctypes.memmove(to + row * to_pitch, source + row * pitch, width)

        self.stream.push(copy)

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: self.pooled, free_all_blocks=self._trim)

    def _trim(self) -> None:
        self.check()
        self.pooled = 0

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        def get_function(name: str) -> Raw:
            if "wrong" in code:
                raise CompileException('other.cu(2): warning: x\nother.cu(3): error: "wrong" is undefined\n')
            if self.kernels is None:
                return Raw(self, of_cuda(code, name, self.shared))
            return Raw(self, of_python(self.kernels[name]))

        return SimpleNamespace(get_function=get_function)

    def _pin(self, size: int) -> np.ndarray:
        self.check()
        self.pinned.append(np.zeros(size, np.uint8))
        return self.pinned[-1]


class _Place:
    def __init__(self, gpu: Gpu, attributes: dict[str, int]):
        self._gpu, self.attributes = gpu, attributes

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *exc: object) -> None: ...

    @property
    def mem_info(self) -> tuple[int, int]:
        return self._gpu.memory - self._gpu.used, self._gpu.memory


class Blas:
    """As cublas.Blas: works on addresses, in the order of the stream."""

    def __init__(self, gpu: Gpu):
        self._gpu = gpu

    def gemm(self, out: int, x: int, w: int, shape: tuple[int, int, int], kind: str) -> None:
        rows, wide, deep = shape

        def multiply() -> None:
            product = _matrix(x, rows, deep, kind) @ _matrix(w, wide, deep, kind).T
            ctypes.memmove(out, np.ascontiguousarray(product).ctypes.data, product.nbytes)

        self._gpu.stream.push(multiply)


def _matrix(address: int, rows: int, columns: int, kind: str) -> np.ndarray:
    """f32 [rows, columns] of what lies there."""
    dtype = np.dtype({"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[kind])
    raw = ctypes.string_at(address, rows * columns * dtype.itemsize)
    held = np.frombuffer(raw, dtype).reshape(rows, columns)
    return (held.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else held.astype(np.float32)


def emulated_card(processors: int = 3) -> card.Card:
    """A card on a GPU of the host that runs the backend's own kernels.

    Raises
    ------
    BackendMissing   where nothing can be built
    """
    build.compiler()
    gpu = Gpu(memory=1 << 30, processors=processors)
    with mock.patch.object(card, "import_module", {"cupy": gpu}.__getitem__):
        made = card.Card(0, FACTS)
    made._blas = Blas(gpu)  # type: ignore[assignment]
    return made
