"""Matrix products of cuBLAS, by its C interface.

CuPy's own wrapper sets the stream before every call. That refuses while the stream is being recorded, and
takes away the workspace that a recorded product needs: without one, each recording keeps another for itself.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

WORKSPACE_BYTES = 32 << 20  # what cuBLAS asks for on Hopper, and more than it asks for on older ones
KINDS = {"f32": 0, "f16": 2, "bf16": 14}  # CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
TRANSPOSED, AS_IS = 1, 0
F32_SUMS = 68  # CUBLAS_COMPUTE_32F: products and sums in f32, never TF32 in the default math mode
ANY_ALGORITHM = -1
DEFAULT_MATH = 0
SUCCESS = 0
NO_MEMORY = 3  # CUBLAS_STATUS_ALLOC_FAILED


class BlasError(Exception):
    """status : cuBLAS's own number"""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


class Blas:
    """One handle, bound to one stream and one workspace for good.

    handle : from cublasCreate
    major : of CUDA; the library is already in the process, and is found there by name
    stream, workspace : addresses; the caller keeps the memory alive
    """

    def __init__(self, handle: int, major: int, stream: int, workspace: int):
        windows = sys.platform == "win32"
        self._library = ctypes.CDLL(f"cublas64_{major}.dll" if windows else f"libcublas.so.{major}")
        self._library.cublasGetStatusString.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p(handle)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        integer, pointer = ctypes.c_int, ctypes.c_void_p
        matrix = (pointer, integer, integer)  # address, kind, elements from one column to the next
        self._gemm: Any = self._library.cublasGemmEx
        self._gemm.argtypes = (
            pointer, integer, integer, integer, integer, integer, pointer, *matrix, *matrix, pointer, *matrix,
            integer, integer,
        )  # fmt: skip
        self._check(self._library.cublasSetMathMode(self._handle, DEFAULT_MATH))
        self._check(self._library.cublasSetStream_v2(self._handle, pointer(stream)))
        size = ctypes.c_size_t(WORKSPACE_BYTES)  # after the stream, which would take it away again
        self._check(self._library.cublasSetWorkspace_v2(self._handle, pointer(workspace), size))

    def gemm(self, out: int, x: int, w: int, shape: tuple[int, int, int], kind: str) -> None:
        """out f32 [R, N] = x [R, M] @ w [N, M]^T, all by address; shape is (R, N, M).

        cuBLAS counts by columns: it is told to make out^T [N, R] = w @ x^T, which is the same memory.
        """
        rows, wide, deep = shape
        stored = KINDS[kind]
        self._check(
            self._gemm(
                self._handle, TRANSPOSED, AS_IS, wide, rows, deep, ctypes.byref(self._one),
                w, stored, deep, x, stored, deep, ctypes.byref(self._zero),
                out, KINDS["f32"], wide, F32_SUMS, ANY_ALGORITHM,
            )
        )  # fmt: skip

    def _check(self, status: int) -> None:
        if status != SUCCESS:
            raise BlasError(status, self._library.cublasGetStatusString(status).decode())
