"""ggml's product of Q4_0 with f32, out of whatever installed package brings ggml along: a peer for `bench`.

Its C functions are called by name, and nobody promises that they stay as they are. So they are called in a
process of their own: what goes wrong there is a line that is left out. `Ggml` is our end; a request and its
answer are a line of JSON each.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kernels import quant
from pipeline.tools.card_ops import random_blocks
from pipeline.tools.card_run import Absent

WHISPER = "pywhispercpp.libs/libggml"
PACKAGES = {  # package -> its module, and the libraries in the order they are loaded, from where that lies
    "xllamacpp": ("xllamacpp", ("xllamacpp*.so", "xllamacpp*.pyd")),
    "pywhispercpp": ("_pywhispercpp", (f"{WHISPER}-base-*", f"{WHISPER}-cpu-*")),
}
CURE = "pip install xllamacpp"
SERVER = (sys.executable, "-m", "pipeline.tools.ggml_peer")
F32, Q4_0 = 0, 2  # ggml_type
TENSOR_ROOM = 1 << 10  # bytes that ggml keeps to describe one tensor, and more
GRAPH_ROOM = 1 << 20
SETS = ("avx512_vnni", "avx512", "avx_vnni", "avx2", "neon")  # what ggml says of itself, the best first
PATIENCE_S = 120.0

Handle = ctypes.c_void_p


class Ggml:
    """A process that multiplies with ggml, for as long as the context lasts.

    name : package, version and the instruction set it was built for
    """

    def __init__(self, process: subprocess.Popen[str], name: str):
        self._process, self.name = process, name

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Ggml]:
        """Raises Absent where no package brings ggml, or not one that can be used."""
        if not any(map(_installed, PACKAGES)):
            raise Absent(f"no package with ggml is installed; {CURE}")
        to, fro, aside = subprocess.PIPE, subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(SERVER, text=True, stdin=to, stdout=fro, stderr=aside) as process:
            try:
                peer = cls(process, "ggml")
                peer.name = peer._ask({"name": True})["name"]
                yield peer
            finally:
                process.kill()

    def hold(self, outputs: int, inputs: int, copies: int, each: int, threads: int) -> int:
        """Make `copies` random matrices [outputs, inputs], multiplied `each` at a time; says how many turns
        there are.
        """
        asked = {"outputs": outputs, "inputs": inputs, "copies": copies, "each": each, "threads": threads}
        return self._ask(asked)["turns"]

    def multiply(self, turn: int) -> float:
        """Seconds for one row of x times the matrices of that turn."""
        return self._ask({"turn": turn})["seconds"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout, "both were asked for"
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise Absent(f"{self.name} ended with code {self._process.wait(timeout=PATIENCE_S)}")
        told = json.loads(answer)
        if "error" in told:
            raise Absent(f"{self.name}: {told['error']}")
        return told


def _installed(package: str) -> bool:
    return find_spec(PACKAGES[package][0]) is not None


class Parameters(ctypes.Structure):
    """ggml_init_params"""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", Handle), ("no_alloc", ctypes.c_bool)]


class Library:
    """The functions of the first package that has them all; every argument that is not said is a pointer."""

    def __init__(self, package: str):
        self.version = metadata.version(package)
        self._found = list(_load(package))

    def call(self, name: str, *arguments: Any, gives: Any = Handle) -> Any:
        function = next((getattr(one, name) for one in self._found if hasattr(one, name)), None)
        if function is None:
            raise Absent(f"it has no function {name}")
        function.restype = gives
        return function(*(Handle(a) if isinstance(a, int) or a is None else a for a in arguments))

    def has(self, feature: str) -> bool:
        name = f"ggml_cpu_has_{feature}"
        return any(hasattr(one, name) for one in self._found) and bool(self.call(name, gives=ctypes.c_int))


def _load(package: str) -> Iterator[ctypes.CDLL]:
    module, patterns = PACKAGES[package]
    spec = find_spec(module)
    home = Path(spec.origin).parent if spec and spec.origin else Path()
    for pattern in patterns:
        for file in sorted(home.glob(pattern)):
            yield ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


@dataclass
class Products:
    """Matrices in ggml's memory, laid out as it likes them best, and a graph for each turn."""

    library: Library
    backend: int
    graphs: list[int]

    @classmethod
    def make(
        cls, library: Library, outputs: int, inputs: int, copies: int, each: int, threads: int
    ) -> Products:
        call = library.call
        backend = call("ggml_backend_cpu_init")
        call("ggml_backend_cpu_set_n_threads", backend, ctypes.c_int(threads))
        held = _context(library, copies)
        matrices = [_matrix(library, held, Q4_0, inputs, outputs) for _ in range(copies)]
        if not call("ggml_backend_alloc_ctx_tensors_from_buft", held, _layout(library, backend)):
            raise Absent("it refused the memory for the weights")
        raw = np.ascontiguousarray(random_blocks(quant.nbytes("q4_0", (outputs, inputs))))
        for matrix in matrices:
            _fill(library, matrix, raw)
        work = _context(library, 2 * copies, room=(copies // each + 1) * GRAPH_ROOM)
        x = _matrix(library, work, F32, inputs, 1)
        turns = [matrices[at : at + each] for at in range(0, copies, each)]
        graphs = [_graph(library, work, turn, x) for turn in turns]
        if not call("ggml_backend_alloc_ctx_tensors", work, backend):
            raise Absent("it refused the memory for the products")
        _fill(library, x, np.random.default_rng(0).standard_normal(inputs, np.float32))
        return cls(library, backend, graphs)

    def run(self, turn: int) -> float:
        started = time.perf_counter()
        status = self.library.call(
            "ggml_backend_graph_compute", self.backend, self.graphs[turn], gives=ctypes.c_int
        )
        spent = time.perf_counter() - started
        if status:
            raise Absent(f"it failed with status {status}")
        return spent


def _context(library: Library, tensors: int, room: int = 0) -> int:
    parameters = Parameters(tensors * TENSOR_ROOM + TENSOR_ROOM + room, None, True)
    return library.call("ggml_init", parameters)


def _matrix(library: Library, context: int, kind: int, columns: int, rows: int) -> int:
    sizes = ctypes.c_int64(columns), ctypes.c_int64(rows)
    return library.call("ggml_new_tensor_2d", context, ctypes.c_int(kind), *sizes)


def _graph(library: Library, context: int, matrices: list[int], x: int) -> int:
    graph = library.call("ggml_new_graph", context)
    for matrix in matrices:
        library.call("ggml_build_forward_expand", graph, library.call("ggml_mul_mat", context, matrix, x))
    return graph


def _fill(library: Library, tensor: int, array: np.ndarray) -> None:
    size = ctypes.c_size_t(array.nbytes)
    library.call("ggml_backend_tensor_set", tensor, array.ctypes.data, ctypes.c_size_t(0), size, gives=None)


def _layout(library: Library, backend: int) -> int:
    """The kind of buffer in which ggml repacks Q4_0 for this processor; the plain one if it has none."""
    device = library.call("ggml_backend_get_device", backend)
    registry = library.call("ggml_backend_dev_backend_reg", device)
    found = library.call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
    if found:
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(Handle), Handle)(found)(device)
        for kind in itertools.takewhile(bool, map(kinds.__getitem__, itertools.count())):
            if library.call("ggml_backend_buft_name", kind, gives=ctypes.c_char_p) == b"CPU_REPACK":
                return kind
    return library.call("ggml_backend_get_default_buffer_type", backend)


def _serve(library: Library, name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    held: list[Products] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "turn" in request:
            return {"seconds": held[-1].run(request["turn"])}
        if "name" in request:
            return {"name": name}
        held[:] = [Products.make(library, **request)]
        return {"turns": len(held[-1].graphs)}

    return answer


def main() -> None:
    """The other end: answers line by line until its input ends."""
    package = next(filter(_installed, PACKAGES))
    library = Library(package)
    built = next((name for name in SETS if library.has(name)), "plain")
    answer = _serve(library, f"{package} {library.version}, {built}")
    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except Absent as reason:
            told = {"error": str(reason)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
