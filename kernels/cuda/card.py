"""The GPU itself, through CuPy: the only file that imports it, and that only when a card is opened.

Everything is queued on one stream of our own. CuPy's pool keeps memory apart by the stream that was current
when it was taken, so ours is current whenever memory is; what is freed is then taken again in stream order.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import numpy as np

from kernels.cuda.cublas import NO_MEMORY, WORKSPACE_BYTES, Blas, BlasError
from kernels.cuda.device import Kernel, Scratch
from kernels.cuda.diagnosis import MEMORY, Facts, diagnose, failure, first_error, last_line, out_of_memory
from kernels.cuda.pinned import Block, Pinned
from kernels.cuda.source import OPTIONS, source
from kernels.errors import BackendMissing, CompileError, KernelError, OutOfMemory, ShapeError
from kernels.tensor import Pending

PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0", "cupy-rocm-7-1")
STAGED_BYTES = 4 << 20  # larger arrays go up as they are: copying them twice costs more than waiting
NOT_READY = 600  # cudaErrorNotReady
PROBE = '#include <cuda_fp16.h>\nextern "C" __global__ void probe(half* x) { x[0] = __float2half(1.0f); }\n'


def open_card(index: int = 0) -> Card:
    """The GPU number `index` of those that CUDA_VISIBLE_DEVICES leaves.

    Raises
    ------
    BackendMissing   saying what is missing, and the cure
    """
    facts = look(index)
    if reason := diagnose(facts):
        raise BackendMissing(reason)
    return Card(index, facts)


def look(index: int = 0) -> Facts:
    """What there is on the way to that GPU, as far as it can be followed; never raises."""
    facts = Facts(index=index, importable=find_spec("cupy") is not None)
    if not facts.importable:
        return facts
    facts = replace(facts, packages=tuple(name for name in PACKAGES if _installed(name)))
    if len(facts.packages) > 1:  # importing two at once warns at length, and may crash
        return facts
    try:
        cuda = import_module("cupy.cuda")
        known = cuda.runtime.runtimeGetVersion(), cuda.runtime.driverGetVersion()
        facts = replace(
            facts, version=import_module("cupy").__version__, built=known[0], driver=known[1],
            amd=bool(cuda.runtime.is_hip),
        )  # fmt: skip
    except OSError as fault:  # CuPy makes its folder of compiled kernels, 13 at the first one, 14 right away
        return replace(facts, cache_fault=str(fault))
    except (ImportError, RuntimeError, AttributeError) as fault:
        return replace(facts, fault=last_line(str(fault)))
    if facts.amd or not facts.driver:
        return facts
    try:
        facts = replace(facts, devices=cuda.runtime.getDeviceCount())
        return _device(facts, cuda) if 0 <= index < facts.devices else facts
    except RuntimeError as fault:
        none = "cudaErrorNoDevice" in str(fault)
        return replace(facts, refusal="" if none else str(fault))


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device(facts: Facts, cuda: Any) -> Facts:
    """The rest of the facts, of a device that is there."""
    place = cuda.Device(facts.index)
    properties = cuda.runtime.getDeviceProperties(facts.index)
    facts = replace(
        facts, name=properties["name"].decode(errors="replace"),
        capability=(properties["major"], properties["minor"]), memory=place.mem_info,
    )  # fmt: skip
    try:
        facts = replace(facts, compiler=cuda.nvrtc.getVersion())
        with place:
            import_module("cupy").RawModule(code=PROBE, options=OPTIONS).get_function("probe")
    except OSError as fault:
        return replace(facts, cache_fault=str(fault))
    except (RuntimeError, cuda.compiler.CompileException) as fault:
        built = isinstance(fault, cuda.compiler.CompileException)
        said = first_error(str(fault)) if built else str(fault).partition("\n")[0]
        return replace(facts, build_fault=said)
    try:
        _ = cuda.cublas
    except ImportError as fault:
        return replace(facts, blas_fault=str(fault).partition("\n")[0])
    return facts


class Card:
    """One NVIDIA GPU and one stream on it, as `Device` describes; opened by `open_card`.

    Not for two threads at once: scratch is shared, and what another thread queues meanwhile would become part
    of a recording. Answers of `fetch` may be waited for on any thread.

    Every method raises OutOfMemory where there is no room, DeviceLost once the device has stopped answering,
    perhaps because of something queued long before, and else KernelError.
    """

    def __init__(self, index: int, facts: Facts):
        self._cupy: Any = import_module("cupy")
        self._cuda = cuda = self._cupy.cuda
        self.name, self.capability = facts.name, facts.capability
        self._major = facts.built // 1000
        self._place = cuda.Device(index)
        self.processors: int = self._place.attributes["MultiProcessorCount"]
        self.shared_bytes: int = self._place.attributes["MaxSharedMemoryPerBlockOptin"]
        with self.busy("opening"):
            self.stream = cuda.Stream(non_blocking=True)
        self._scratch = Scratch(self.zeros)
        self.pinned = Pinned(cuda)
        self._modules: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], Kernel] = {}
        self._blas: Blas | None = None
        self._workspace: Any = None

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """The device is current inside; what CuPy raises there becomes our own error."""
        try:
            with self._place:
                yield
        except RuntimeError as error:
            raise self.told(error, doing) from error

    def told(self, error: Exception, doing: str) -> KernelError:
        """What an error of CuPy is to our callers."""
        if isinstance(error, KernelError):
            return error
        return failure(getattr(error, "status", -1), str(error), doing, self.name)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._take(self._cupy.empty, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._take(self._cupy.zeros, shape, dtype)

    def clear(self, array: Any) -> None:
        with self.busy("clearing"):
            array.data.memset_async(0, array.nbytes, self.stream)

    def upload(self, array: np.ndarray, out: Any | None = None) -> Any:
        held = self.empty(array.shape, array.dtype) if out is None else out
        if not array.size:
            return held
        with self.busy("uploading"):
            if array.nbytes <= STAGED_BYTES:
                block = self.pinned.take(array.nbytes)
                staged = block.view(array.shape, array.dtype)
                staged[...] = array
                held.set(staged, stream=self.stream)
                block.event.record(self.stream)
                self.pinned.give(block)
            else:  # a GPU that reads pageable memory itself would not be done with it when `set` returns
                held.set(np.ascontiguousarray(array), stream=self.stream)
                self.stream.synchronize()
        return held

    def fetch(self, array: Any) -> Pending:
        with self.busy("fetching"):
            block = self.pinned.take(array.nbytes)
            array.get(stream=self.stream, out=block.view(array.shape, array.dtype), blocking=False)
            block.event.record(self.stream)
        answer = _Answer(self, block, array.shape, array.dtype)
        return Pending(answer.take, answer.poll)

    def copy(self, array: Any, out: Any | None = None) -> Any:
        held = self.empty(array.shape, array.dtype) if out is None else out
        if held.shape != array.shape or held.dtype != array.dtype:
            raise ShapeError(f"copy: {array.dtype} {array.shape} does not fit {held.dtype} {held.shape}")
        with self.busy("copying"):
            if array.flags.c_contiguous:
                held.data.copy_from_device_async(array.data, array.nbytes, self.stream)
            else:
                self._copy_rows(held, array)
        return held

    def scratch(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._scratch.take(name, shape, dtype)

    def kernel(self, file: str, name: str) -> Kernel:
        found = self._kernels.get((file, name))
        if found is None:
            found = self._kernels[file, name] = _Launch(self, self._build(file, name), f"{file}.{name}")
        return found

    def gemm(self, out: Any, x: Any, w: Any, kind: str) -> None:
        with self.busy("multiplying"):
            shape = (*out.shape, x.shape[1])
            try:
                if self._blas is None:
                    self._blas = self._open_blas()
                self._blas.gemm(out.data.ptr, x.data.ptr, w.data.ptr, shape, kind)
            except BlasError as error:
                raise self._blas_failure(error, f"multiplying {x.shape} by {w.shape}") from error

    def record(self, fn: Callable[[], None]) -> Callable[[], None]:
        with self.busy("recording"), _no_collection():
            self.stream.begin_capture()  # CuPy's default mode is the relaxed one: nothing else can spoil it
            try:
                fn()
            except BaseException:
                self._abandon()
                raise
            graph = self.stream.end_capture()
            graph.upload(self.stream)
        return _Replay(self, graph, fn)

    def free_bytes(self) -> int:
        with self.busy("asking for free memory"):
            return self._place.mem_info[0] + self._cupy.get_default_memory_pool().free_bytes()

    def trim(self) -> None:
        with self.busy("giving memory back"):
            self._cupy.get_default_memory_pool().free_all_blocks()

    def timed(self, fn: Callable[[], None]) -> float:
        with self.busy("timing"):
            before, after = self._cuda.Event(), self._cuda.Event()
            before.record(self.stream)
            fn()
            after.record(self.stream)
            after.synchronize()
            return self._cuda.get_elapsed_time(before, after) / 1000

    def _take(self, make: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
        try:
            with self.busy("taking memory"), self.stream:
                return make(shape, dtype)
        except (MemoryError, OutOfMemory) as error:  # from CuPy's pool, and from below it
            asked = math.prod(shape) * np.dtype(dtype).itemsize
            free, total = self._place.mem_info
            raise out_of_memory(asked, free, total, self.name) from error

    def _copy_rows(self, out: Any, array: Any) -> None:
        """Some items of every lane, array [:, t:u] of a larger one: rows of bytes that lie apart."""
        if not array[0].flags.c_contiguous:
            raise ShapeError(f"copy: expected items that follow each other, found strides {array.strides}")
        runtime, width = self._cuda.runtime, array[0].nbytes
        runtime.memcpy2DAsync(
            out.data.ptr, width, array.data.ptr, array.strides[0], width, len(array),
            runtime.memcpyDeviceToDevice, self.stream.ptr,
        )  # fmt: skip

    def _build(self, file: str, name: str) -> Any:
        if file not in self._modules:
            self._modules[file] = self._cupy.RawModule(code=source(file), options=OPTIONS)
        try:
            with self.busy(f"loading {file}.{name}"):
                return self._modules[file].get_function(name)
        except self._cuda.compiler.CompileException as error:
            raise CompileError(
                f"cuda: {file}.cu does not build for {self.name}: {first_error(str(error))}"
            ) from error

    def _open_blas(self) -> Blas:
        self._workspace = self.empty((WORKSPACE_BYTES,), np.uint8)
        try:
            handle = self._cuda.cublas.create()
        except RuntimeError as error:  # its status is one of cuBLAS, not of CUDA
            raise BlasError(getattr(error, "status", -1), str(error)) from error
        return Blas(handle, self._major, self.stream.ptr, self._workspace.data.ptr)

    def _blas_failure(self, error: BlasError, doing: str) -> KernelError:
        """cuBLAS has no number for a device that is lost; the stream knows."""
        status = self._cuda.runtime.streamQuery(self.stream.ptr)
        if status not in (0, NOT_READY):
            return failure(status, f"cuBLAS: {error}", doing, self.name)
        return failure(MEMORY if error.status == NO_MEMORY else -1, f"cuBLAS: {error}", doing, self.name)

    def _abandon(self) -> None:
        with suppress(RuntimeError):  # the recording is spoilt, which is why we are here
            self.stream.end_capture()


class _Launch:
    """A kernel with its stream; raises its limit of dynamic shared memory when first asked for more."""

    __slots__ = ("_card", "_function", "_name", "_place", "_raw", "_room", "_stream")

    def __init__(self, card: Card, raw: Any, name: str):
        self._card, self._raw, self._name = card, raw, name
        self._stream, self._place = card.stream, card._place
        with card.busy(f"loading {name}"):
            self._function = raw.kernel
            self._room: int = raw.max_dynamic_shared_size_bytes

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        if 0 in grid:  # CuPy would launch one block
            return
        try:
            with self._place:
                if shared_mem > self._room:
                    self._raw.max_dynamic_shared_size_bytes = shared_mem
                    self._room = shared_mem
                self._function(grid, block, args, shared_mem, self._stream)
        except RuntimeError as error:
            raise self._card.told(error, f"launching {self._name}") from error


class _Replay:
    """A recorded graph; `fn` holds on to the arrays that the graph knows by address only."""

    __slots__ = ("_card", "_fn", "_graph")

    def __init__(self, card: Card, graph: Any, fn: Callable[[], None]):
        self._card, self._graph, self._fn = card, graph, fn

    def __call__(self) -> None:
        with self._card.busy("replaying"):
            self._graph.launch(self._card.stream)


class _Answer:
    """A copy under way to the host; the pinned block goes back when nobody holds the answer any more."""

    __slots__ = ("_array", "_block", "_card", "_dtype", "_shape")

    def __init__(self, card: Card, block: Block, shape: tuple[int, ...], dtype: Any):
        self._card, self._block, self._shape, self._dtype = card, block, shape, dtype
        self._array: np.ndarray | None = None

    def poll(self) -> bool:
        """Whether `take` would not wait: after an error it does not either, but raises it."""
        return self._card._cuda.runtime.eventQuery(self._block.event.ptr) != NOT_READY

    def take(self) -> np.ndarray:
        if self._array is None:
            with self._card.busy("fetching"):
                self._block.event.synchronize()
            self._array = self._block.view(self._shape, self._dtype).copy()
        return self._array

    def __del__(self) -> None:
        self._card.pinned.give(self._block)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected inside: what it frees or unloads could spoil a recording."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
