"""As much of CuPy as `Card` asks for, on the host: so that the card's own care is tested where no GPU is.

What is queued runs as late as it may: when somebody waits for it. A host array that is used again too early,
or pinned memory that is, then shows. The semantics are those of CuPy 13 and 14, read in their sources: copies
from and to the host are refused while their stream records, and an error that breaks the device meets every
later call.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

ILLEGAL_ADDRESS, OUT_OF_MEMORY, NOT_READY = 700, 2, 600
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

    def set(self, array: np.ndarray, stream: Stream) -> None:
        assert array.shape == self.shape and array.dtype == self.dtype
        stream.push(lambda: np.copyto(self, array), host=True)

    def get(self, *, stream: Stream, out: np.ndarray, blocking: bool) -> None:
        assert not blocking and out.shape == self.shape
        stream.push(lambda: np.copyto(out, self), host=True)


class Raw:
    """A kernel: a Python function that is given what a launch passes."""

    def __init__(self, gpu: Gpu, body: Callable[..., None]):
        self._gpu, self._body, self._limit = gpu, body, 48 << 10

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
        stream.push(lambda: self._body(*args))


class Gpu:
    """The module `cupy` with a device behind it.

    memory : bytes it has; kernels : Python functions by name, found in any source text that is not "wrong"
    broken : the error every call meets, 0 while all is well
    """

    __version__ = "14.2.0"

    def __init__(self, memory: int = 1 << 26, kernels: dict[str, Callable[..., None]] | None = None):
        self.memory, self.used, self.broken, self.shared = memory, 0, 0, 200 << 10
        self.pooled = 512  # bytes that nobody holds and that the driver has not back
        self.kernels, self.raised = kernels or {}, []
        self.events: dict[int, Event] = {}
        self.stream: Stream
        self.pinned: list[np.ndarray] = []
        self.arrays: list[Array] = []  # all of them, as what is queued knows addresses alone
        place = SimpleNamespace(
            attributes={"MultiProcessorCount": 3, "MaxSharedMemoryPerBlockOptin": self.shared},
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
            return Raw(self, self.kernels[name])

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
