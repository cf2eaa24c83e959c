"""A `Device` whose memory is NumPy's and whose kernels are those of the .cu files, on the CPU."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kernels import KernelError
from kernels.cuda import source
from kernels.cuda.device import Scratch
from kernels.tensor import Pending
from tests.kernels.emulator import build, launch

ALIGNMENT = 256
UNWRITTEN = 0xFF  # as f32 and f16 NaN, as a whole number -1

# Of the environment, so that one run of any tests can be had in another mode, see test_sanitizers.py.
MODE = "HEADRACE_EMULATOR"  # plain, poison, asan, ubsan or tsan
LAUNCHED = "HEADRACE_LAUNCHED"  # a file that takes "mode file kernel" for each kernel that ran


class EmulatedDevice:
    """A GPU of the given capability.

    mode : plain, or poison: shared memory holds NaN when a block starts; asan, ubsan and tsan want a process
        started in the environment that `build.preloaded` gives; unless said, what MODE names, or poison
    seed : 0 lets threads take turns; any other draws who runs, with one warp far ahead of the others

    Raises
    ------
    BackendMissing   where nothing can be built, or a sanitizer is not in the process
    """

    def __init__(
        self, mode: str | None = None, *, seed: int = 0, capability: tuple[int, int] = (9, 0),
        processors: int = 4, free: int = 1 << 34,
    ):  # fmt: skip
        mode = mode or os.environ.get(MODE, "poison")
        build.compiler()
        build.check_preloaded(mode)
        self.name = f"emulated sm_{capability[0]}{capability[1]}"
        self.capability, self.processors = capability, processors
        self.shared_bytes = launch.SHARED_BYTES[capability]
        self.mode, self.seed, self._free = mode, seed, free
        self.launched: set[str] = set()  # "mode file kernel" of every launch that ran
        self._scratch = Scratch(self.zeros)
        self._exact: dict[tuple[str, int], np.ndarray] = {}
        self._kernels: dict[tuple[str, str], EmulatedKernel] = {}
        self._recording: list[Callable[[], None]] | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Never written, and it shows."""
        self._refuse_while_recording("allocates memory")
        count, dtype = int(np.prod(shape, dtype=np.int64)), np.dtype(dtype)
        array = _memory(count * dtype.itemsize)
        array[:] = UNWRITTEN
        return array[: count * dtype.itemsize].view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def clear(self, array: np.ndarray) -> None:
        self._queue(lambda: array.fill(0))

    def upload(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        self._refuse_while_recording("uploads from the host")
        out = self.empty(array.shape, array.dtype) if out is None else out
        out[...] = array
        return out

    def fetch(self, array: np.ndarray) -> Pending:
        self._refuse_while_recording("reads back")
        taken = array.copy()
        return Pending(lambda: taken)

    def copy(self, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        target = self.empty(array.shape, array.dtype) if out is None else out
        self._queue(lambda: np.copyto(target, array, casting="no"))
        return target

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Under asan each size has memory of its own, which ends where it ends; else see `Scratch`."""
        if self.mode != "asan":
            return self._scratch.take(name, shape, dtype)
        key = name, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if key not in self._exact:
            self._exact[key] = self.zeros((key[1],), np.uint8)
        return self._exact[key].view(dtype).reshape(shape)

    def kernel(self, file: str, name: str) -> EmulatedKernel:
        key = file, name
        if key not in self._kernels:
            self._refuse_while_recording(f"compiles {name}")
            self._kernels[key] = self.load(source.source(file), file, name)
        return self._kernels[key]

    def load(self, text: str, file: str, name: str) -> EmulatedKernel:
        """A kernel of any source text, as `kernel` for those of the backend."""
        entries = launch.entries(text, file, self.mode)
        if name not in entries:
            raise KernelError(f"{file}.cu: no kernel is called {name!r}; there are {', '.join(entries)}")
        return EmulatedKernel(self, file, entries[name])

    def gemm(self, out: np.ndarray, x: np.ndarray, w: np.ndarray, kind: str) -> None:
        if out.dtype != np.float32 or x.dtype != w.dtype or x.dtype != _GEMM[kind]:
            raise KernelError(f"gemm {kind}: out {out.dtype}, x {x.dtype}, w {w.dtype}")
        if out.shape != (len(x), len(w)) or x.shape[1] != w.shape[1]:
            raise KernelError(f"gemm: x {x.shape} times w {w.shape} does not fit out {out.shape}")
        self._queue(lambda: np.matmul(_f32(x, kind), _f32(w, kind).T, out=out))

    def record(self, fn: Callable[[], None]) -> Callable[[], None]:
        """As a stream does: what is queued is kept, not run, and what a capture cannot hold is refused."""
        self._refuse_while_recording("records")
        steps: list[Callable[[], None]] = []
        self._recording = steps
        try:
            fn()
        finally:
            self._recording = None

        def replay() -> None:
            self._refuse_while_recording("replays")
            for step in steps:
                step()

        return replay

    def free_bytes(self) -> int:
        return self._free

    def trim(self) -> None:
        """The system has it back already."""

    def timed(self, fn: Callable[[], None]) -> float:
        start = perf_counter()
        fn()
        return perf_counter() - start

    def note(self, launch: str) -> None:
        """Keep what has run, here and where LAUNCHED says."""
        if launch not in self.launched and LAUNCHED in os.environ:
            with Path(os.environ[LAUNCHED]).open("a", encoding="utf-8") as file:
                file.write(f"{launch}\n")
        self.launched.add(launch)

    def _queue(self, step: Callable[[], Any]) -> None:
        if self._recording is None:
            step()
        else:
            self._recording.append(step)

    def _refuse_while_recording(self, what: str) -> None:
        if self._recording is not None:
            raise KernelError(f"record: the step {what}, which a recorded step cannot; do it once before")


@dataclass(frozen=True, slots=True, eq=False)
class EmulatedKernel:
    device: EmulatedDevice
    file: str
    entry: launch.Entry

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        """Checked now, run now or when replayed; arrays are held until then."""
        device, entry = self.device, self.entry
        grid, block = launch.check_shape(entry, grid, block, shared_mem, device.shared_bytes)
        packed = launch.pack(entry, args)

        def step(_held: tuple[Any, ...] = args) -> None:
            poison = device.mode == "poison"
            launch.run(entry, grid, block, packed, shared_mem, poison=poison, seed=device.seed)
            device.note(f"{device.mode} {self.file} {entry.name}")

        device._queue(step)


_GEMM = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


def _f32(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _memory(count: int) -> np.ndarray:
    """`count` bytes, aligned, from the allocator that a sanitizer watches: they end where they end."""
    libc, address = ctypes.CDLL(None), ctypes.c_void_p()
    if libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(max(1, count))):
        raise KernelError(f"empty: {count} bytes are more than this machine has")
    held = (ctypes.c_uint8 * max(1, count)).from_address(address.value)
    weakref.finalize(held, libc.free, address)
    return np.frombuffer(held, np.uint8)
