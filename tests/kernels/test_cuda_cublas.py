"""What cuBLAS is asked for, by a library of the same face that multiplies on the CPU, in plain loops."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kernels.cuda.cublas import WORKSPACE_BYTES, Blas, BlasError
from tests.compare import assert_close
from tests.kernels.arrays import normal

MAJOR = 99  # of a CUDA version that no machine has
RTOL = 1e-6  # f32 values, double sums against float64
NEVER, WRONG = 15, 7  # CUBLAS_STATUS_NOT_SUPPORTED, CUBLAS_STATUS_INVALID_VALUE

# By the reference of cublasGemmEx: matrices lie by columns, op is N for 0 and T for 1. By that of
# cublasSetStream: it takes a workspace away.
STANDS_IN = r"""
#include <cstddef>
#include <cstdint>
#include <cstring>
static void* stream; static void* room; static size_t size; static int mode = -1;
static double at(const void* a, int kind, size_t i) {
    if (kind == 0) return static_cast<const float*>(a)[i];
    uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(a)[i]) << 16;
    float value; std::memcpy(&value, &bits, 4); return value;
}
extern "C" {
const char* cublasGetStatusString(int status) { return status == 15 ? "not supported" : "wrong"; }
int cublasSetMathMode(void* handle, int m) { mode = m; return handle == (void*)77 ? 0 : 7; }
int cublasSetStream_v2(void*, void* s) { stream = s; room = nullptr; size = 0; return 0; }
int cublasSetWorkspace_v2(void*, void* w, size_t n) { room = w; size = n; return 0; }
int asked(void** s, void** w, size_t* n) { *s = stream; *w = room; *n = size; return mode; }
int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const float* alpha,
                 const void* a, int ka, int lda, const void* b, int kb, int ldb, const float* beta,
                 float* c, int kc, int ldc, int compute, int algo) {
    if (handle != (void*)77 || kc != 0 || compute != 68 || algo != -1) return 7;
    if (ka != kb || (ka != 0 && ka != 14)) return 15;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += at(a, ka, ta ? l + (size_t)i * lda : i + (size_t)l * lda)
                     * at(b, kb, tb ? j + (size_t)l * ldb : l + (size_t)j * ldb);
            float* out = c + i + (size_t)j * ldc;
            *out = static_cast<float>(*alpha * sum + (*beta ? *beta * *out : 0.0));
        }
    return 0;
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """In the process, and found by its name from then on, as cuBLAS is once CuPy has loaded it."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("cublas")
    source, made = folder / "stand_in.cpp", folder / f"libcublas.so.{MAJOR}"
    source.write_text(STANDS_IN)
    named = f"-Wl,-soname,{made.name}"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", named, source, "-o", made], check=True)
    return ctypes.CDLL(str(Path(made)))


def blas() -> Blas:
    return Blas(77, MAJOR, stream=1234, workspace=5678)


def test_the_stream_and_the_workspace_stay_for_good(library):
    held = blas()
    product(held, 2, 3, 4, "f32")
    stream, room, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    mode = library.asked(ctypes.byref(stream), ctypes.byref(room), ctypes.byref(size))
    assert (stream.value, room.value, size.value) == (1234, 5678, WORKSPACE_BYTES)
    assert mode == 0, "the default: TF32 stays off"


def product(held: Blas, rows: int, wide: int, deep: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What comes out, in memory that held NaN, and what should."""
    x, w = normal(rows, deep), normal(wide, deep, seed=1)
    out = np.full((rows, wide), np.nan, np.float32)
    if kind == "bf16":
        x, w = ((one.view(np.uint32) >> 16).astype(np.uint16) for one in (x, w))
    held.gemm(out.ctypes.data, x.ctypes.data, w.ctypes.data, (rows, wide, deep), kind)
    if kind == "bf16":
        x, w = ((one.astype(np.uint32) << 16).view(np.float32) for one in (x, w))
    return out, x.astype(np.float64) @ w.T.astype(np.float64)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize(("rows", "wide", "deep"), [(1, 1, 1), (1, 5, 7), (6, 1, 3), (4, 9, 16), (11, 3, 8)])
def test_rows_times_rows_is_what_columns_by_columns_give(library, kind, rows, wide, deep):
    out, expected = product(blas(), rows, wide, deep, kind)
    atol = RTOL * float(np.abs(expected).max())
    assert_close(out, expected, rtol=0, atol=atol, what=f"{kind} {rows} x {wide} x {deep}")


def test_a_refusal_carries_its_number_and_its_words(library):
    with pytest.raises(BlasError, match="not supported") as caught:
        product(blas(), 1, 1, 1, "f16")
    assert caught.value.status == NEVER
    with pytest.raises(BlasError) as caught:
        Blas(78, MAJOR, stream=1, workspace=2)
    assert caught.value.status == WRONG
