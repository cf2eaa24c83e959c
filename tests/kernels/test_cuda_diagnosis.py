"""Every reason for which a GPU cannot be used, or fails, has its own message with its own cure."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from kernels import BackendMissing, DeviceLost, KernelError, OutOfMemory
from kernels.cuda.card import look, open_card
from kernels.cuda.diagnosis import (
    STICKY,
    Facts,
    diagnose,
    failure,
    first_error,
    install,
    last_line,
    out_of_memory,
    version,
)

ROOT = Path(__file__).parents[2]
GOOD = Facts(
    packages=("cupy-cuda13x",), importable=True, version="14.2.0", built=13020, driver=13010, devices=1,
    name="NVIDIA H200", capability=(9, 0), memory=(140 << 30, 141 << 30), compiler=(13, 0),
)  # fmt: skip

TROUBLES = {
    "no CuPy": (
        {"importable": False, "packages": ()},
        ["CuPy is not installed; pip install 'headrace[cuda13]'", "'headrace[cuda12]'", "nvidia-smi"],
    ),
    "two CuPys": (
        {"packages": ("cupy-cuda12x", "cupy-cuda13x")},
        ["2 packages bring CuPy", "pip uninstall cupy-cuda12x cupy-cuda13x, then"],
    ),
    "CuPy does not import": (
        {"fault": "ImportError: libcublas.so.13: cannot open shared object file"},
        ["cupy-cuda13x does not import: ImportError: libcublas.so.13", "pip install 'headrace[cuda13]'"],
    ),
    "nowhere to keep kernels": (
        {"cache_fault": "[Errno 13] Permission denied: '/.cupy'"},
        ["Permission denied: '/.cupy'; set CUPY_CACHE_DIR"],
    ),
    "CuPy for AMD": (
        {"amd": True, "packages": ("cupy-rocm-7-0",)},
        ["cupy-rocm-7-0 is built for AMD GPUs; pip uninstall cupy-rocm-7-0"],
    ),
    "no driver": ({"driver": 0, "devices": 0}, ["there is no NVIDIA driver; install one", "--gpus all"]),
    "a driver that wants the other wheel": (
        {"driver": 12040, "devices": 0, "refusal": "cudaErrorInsufficientDriver: ..."},
        [
            "too old for cupy-cuda13x: expected CUDA 13.0 or later, found 12.4; pip uninstall cupy-cuda13x "
            "&& pip install 'headrace[cuda12]', or install a driver of branch 580 or later",
        ],
    ),
    "a driver that no wheel fits": (
        {"driver": 11080, "built": 12090, "packages": ("cupy-cuda12x",)},
        ["expected CUDA 12.0 or later, found 11.8; install a driver of branch 525 or later"],
    ),
    "a driver that refuses": (
        {"refusal": "cudaErrorSystemDriverMismatch: ...", "devices": 0},
        ["the driver refuses: cudaErrorSystemDriverMismatch", "nvidia-smi lists programs", "wants a restart"],
    ),
    "no device": ({"devices": 0}, ["the driver sees no GPU", "CUDA_VISIBLE_DEVICES"]),
    "not that many devices": ({"index": 2, "devices": 2}, ["there is no GPU 2; expected 0 to 1"]),
    "an old device": (
        {"capability": (7, 0), "name": "Tesla V100"},
        ["Tesla V100 has compute capability 7.0, expected 7.5", "backend: portable"],
    ),
    "no NVRTC": (
        {"compiler": None, "build_fault": 'Failure finding "libnvrtc.so.13"'},
        ["NVRTC, which compiles the kernels, is missing: Failure finding", "pip install 'headrace[cuda13]'"],
    ),
    "no headers": (
        {"build_fault": 'probe.cu(1): catastrophic error: cannot open source file "cuda_fp16.h"'},
        ["CUDA's headers are missing", "cuda_fp16.h", "pip install 'headrace[cuda13]'"],
    ),
    "no headers, by CuPy's own words": (
        {"build_fault": "Failed to find CUDA headers. Please install CUDA toolkit headers"},
        ["CUDA's headers are missing", "pip install 'headrace[cuda13]'"],
    ),
    "a compiler that does not know the device": (
        {"build_fault": "nvrtc: error: invalid value for --gpu-architecture (-arch)"},
        ["a kernel of one line fails: nvrtc: error: invalid value"],
    ),
    "no cuBLAS": (
        {"blas_fault": 'Failure finding "libcublas.so.13"'},
        ["cuBLAS is missing: Failure finding"],
    ),
}


def test_where_all_is_there_nothing_is_said():
    assert diagnose(GOOD) is None
    assert diagnose(replace(GOOD, built=12090, packages=("cupy-cuda12x",))) is None, (
        "new drivers run old wheels"
    )
    assert diagnose(replace(GOOD, packages=())) is None, "CuPy from conda or from source"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_each_trouble_is_told_with_its_cure(trouble):
    changes, expected = TROUBLES[trouble]
    said = diagnose(replace(GOOD, **changes))
    assert said is not None and "\n" not in said and not said.endswith(".")
    assert [part for part in expected if part not in said] == [], said


def test_every_trouble_has_a_message_of_its_own():
    said = {diagnose(replace(GOOD, **changes)) for changes, _ in TROUBLES.values()}
    assert len(said) == len(TROUBLES)


def test_the_first_trouble_on_the_way_is_the_one_that_is_told():
    assert "not installed" in str(diagnose(Facts()))
    assert "no NVIDIA driver" in str(diagnose(replace(GOOD, driver=0, devices=0, compiler=None)))


@pytest.mark.parametrize(
    ("driver", "extra"), [(12040, "cuda12"), (13000, "cuda13"), (13020, "cuda13"), (14010, "cuda13")]
)
def test_the_extra_fits_the_driver(driver, extra):
    assert install(driver) == f"pip install 'headrace[{extra}]'"


def test_versions_are_written_as_people_do():
    assert (version(12040), version(13000), version(11080)) == ("12.4", "13.0", "11.8")


@pytest.mark.parametrize("status", sorted(STICKY))
def test_errors_that_break_the_device_lose_it(status):
    lost = failure(status, "cudaErrorIllegalAddress: illegal", "launching norm.rms_norm", "NVIDIA H200")
    assert isinstance(lost, DeviceLost)
    assert str(lost).startswith(
        "cuda: NVIDIA H200 stopped answering, noticed while launching norm.rms_norm: cuda"
    )
    assert "start the program again" in str(lost)


def test_other_errors_leave_the_device_in_use():
    full = failure(2, "cudaErrorMemoryAllocation: out of memory", "recording", "NVIDIA H200")
    assert isinstance(full, OutOfMemory) and "kv: q8" in str(full)
    other = failure(1, "cudaErrorInvalidValue: invalid argument", "launching norm.rms_norm", "NVIDIA H200")
    assert type(other) is KernelError
    assert (
        str(other) == "cuda: launching norm.rms_norm on NVIDIA H200: cudaErrorInvalidValue: invalid argument"
    )


def test_out_of_memory_gives_the_figures():
    said = str(out_of_memory(3_000_000_000, 1_250_000_000, 8_000_000_000, "NVIDIA T4"))
    assert said.startswith("cuda: 3,000.0 MB asked for, 1,250.0 MB of 8,000.0 MB on NVIDIA T4 are free; ")
    assert all(cure in said for cure in ("smaller context", "fewer lanes", "kv: q8"))


def test_of_a_compiler_log_the_first_error_is_kept():
    log = "norm.cu(3): warning #177-D: unused\n\nnorm.cu(9): error: no y here\nnorm.cu(10): error: z\n"
    assert first_error(log) == "norm.cu(9): error: no y here"
    assert first_error("nothing known") == "nothing known" and first_error("") == "no log"


def test_of_a_long_import_error_the_last_line_is_kept():
    text = "\n====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcuda.so.1: gone\n=====\n"
    assert last_line(text) == "ImportError: libcuda.so.1: gone"
    assert last_line("one") == "one" and last_line("") == ""


def alone(program: str) -> str:
    """What `program` prints in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_without_cupy_the_extras_are_named_and_nothing_is_imported():
    said = alone("""
        import sys
        sys.modules["cupy"] = None
        from kernels import BackendMissing
        from kernels.cuda.card import open_card
        try:
            open_card()
        except BackendMissing as reason:
            print(reason)
        print([name for name, module in sys.modules.items() if name.startswith(("cupy", "cuda.")) and module])
    """)
    assert re.match(r"CuPy is not installed; pip install 'headrace\[cuda13\]' where .*\n\[\]\n$", said)


def test_without_a_driver_opening_says_so():
    pytest.importorskip("cupy")
    facts = look()
    if facts.driver:
        pytest.skip("this machine has a driver")
    said = alone("""
        from kernels import BackendMissing
        from kernels.cuda.card import open_card
        try:
            open_card()
        except BackendMissing as reason:
            print(reason)
    """)
    assert "there is no NVIDIA driver; install one" in said


def test_what_the_card_asks_of_cupy_is_there():
    """A name that a new CuPy no longer has is missed here, and not on somebody's GPU."""
    cupy = pytest.importorskip("cupy")
    asked = {
        cupy: ("RawModule", "empty", "zeros", "get_default_memory_pool", "__version__"),
        cupy.RawModule: ("get_function",),
        cupy.RawKernel: ("kernel", "max_dynamic_shared_size_bytes"),
        cupy.ndarray: ("set", "get", "data", "nbytes", "view", "reshape", "flags", "strides"),
        cupy.cuda: ("Device", "Event", "Stream", "alloc_pinned_memory", "get_elapsed_time"),
        cupy.cuda.Device: ("attributes", "mem_info", "__enter__", "__exit__"),
        cupy.cuda.Event: ("record", "synchronize", "done"),
        cupy.cuda.Stream: ("begin_capture", "end_capture", "synchronize", "__enter__"),
        cupy.cuda.Graph: ("launch", "upload"),
        cupy.cuda.MemoryPool: ("free_bytes", "free_all_blocks"),
        cupy.cuda.MemoryPointer: ("memset_async", "copy_from_device_async", "ptr"),
        cupy.cuda.compiler: ("CompileException",),
        cupy.cuda.nvrtc: ("getVersion",),
        cupy.cuda.runtime: (
            "driverGetVersion", "runtimeGetVersion", "getDeviceCount", "getDeviceProperties", "eventQuery",
            "streamQuery", "memcpy2DAsync", "memcpyDeviceToDevice", "is_hip",
        ),
    }  # fmt: skip
    assert not [(owner, name) for owner, names in asked.items() for name in names if not hasattr(owner, name)]


@pytest.mark.gpu
def test_a_wild_write_loses_the_device_of_its_process_and_of_no_other():
    try:
        card = open_card()
    except BackendMissing as reason:
        pytest.skip(f"cuda: {reason}")
    said = alone("""
        import numpy as np
        from kernels import DeviceLost
        from kernels.cuda import card as module
        from kernels.cuda.device import NULL
        code = 'extern "C" __global__ void astray(float* x) { x[threadIdx.x] = 1.0f; }'
        module.source = {"trial": code}.__getitem__
        card = module.open_card()
        x = card.zeros((4,), np.float32)
        card.kernel("trial", "astray")((1,), (32,), (NULL,))
        for turn in range(2):
            try:
                card.fetch(x).wait()
            except DeviceLost as lost:
                print(lost)
    """)
    assert said.count("stopped answering, noticed while fetching: cudaErrorIllegalAddress") == 2
    assert card.fetch(card.zeros((1,), "f4")).wait()[0] == 0, "this process goes on"
