"""What the compiler says of every kernel, for every supported GPU and without one.

NVRTC needs no driver, and with `-v` its assembler reports registers, stack, spills and shared memory. The
gates hold that report against what each .cu file states; nvdisasm then shows whether the instructions that
the speed rests on are really there. `pytest -m oracle -s tests/kernels/test_nvrtc.py` prints the report as
tables.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from kernels.cuda import q4, source

pytestmark = pytest.mark.oracle

GPUS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
HOPPER = "sm_90"
REGISTERS = 65_536  # 32-bit ones, of one processor on every supported GPU
STATIC_SHARED = 48 * 1024  # bytes a block may declare
WARP, MOST_THREADS = 32, 1024

_LOAD, _TENSOR_CORE = r"LDG\..*128.*", r"HMMA\..*"  # 16 bytes from global memory, a product of fragments
RESTS_ON = {  # file and how its kernels begin -> instructions that each of them must have
    ("linear", "q4_staged"): (_LOAD, _TENSOR_CORE),
    ("linear", "q4_product_"): (_LOAD, _TENSOR_CORE),
    ("linear", "dp4a_"): (_LOAD, r"IDP\.4A\..*"),
    ("linear", "gemv_"): (_LOAD,),
    ("attention", "split_"): (_LOAD,),
    ("attention", "chunk_"): (_LOAD, _TENSOR_CORE),
    ("fused", "qkv_"): (_LOAD, _TENSOR_CORE),
    ("fused", "residual_"): (_LOAD, _TENSOR_CORE),
    ("fused", "gate_up_"): (_LOAD, _TENSOR_CORE),
    ("fused", "head_"): (_LOAD, _TENSOR_CORE),
    ("pointwise", ""): (_LOAD, r"STG\..*128"),
}

_BOUNDS = re.compile(r"__launch_bounds__\((\d+)(?:, *(\d+))?\)\s+(\w+)\(")
_NUMBERS = {
    "stack": re.compile(r"(\d+) bytes (?:cumulative )?stack"),
    "spills": re.compile(r"(\d+) bytes spill"),
    "registers": re.compile(r"Used (\d+) registers"),
    "shared": re.compile(r"(\d+) bytes smem"),
}
_LOCAL = ("LDL", "STL")  # loads and stores of local memory: a stack or a spill under another name


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel takes: shared bytes of a block, the rest of a thread, stack and spills in bytes."""

    stack: int
    spills: int
    registers: int
    shared: int


@dataclass(frozen=True, slots=True)
class Build:
    """One file for one GPU."""

    cubin: bytes
    log: str
    usage: dict[str, Usage]


Compile = Callable[..., dict[str, Build]]


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compile]:
    """(text, name, *GPUs) -> a Build for each, once; skips where NVRTC or its headers are not installed.

    In processes of their own, since NVRTC builds one program at a time.
    """
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="pip install cuda-bindings nvidia-cuda-nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as reason:
        pytest.skip(f"cuda-bindings finds no NVRTC: {reason}")
    headers = f"-I{_toolkit('include/cuda_fp16.h').parent}"
    flags = [*source.OPTIONS, *source.ADDED, headers, "--ptxas-options=-v"]
    begun: dict[tuple[str, str], Future[Build]] = {}
    with ProcessPoolExecutor(min(len(GPUS), os.cpu_count() or 1), get_context("spawn")) as pool:

        def build(text: str, name: str, *gpus: str) -> dict[str, Build]:
            for gpu in gpus:
                if (text, gpu) not in begun:
                    begun[text, gpu] = pool.submit(_build, text, name, [f"-arch={gpu}", *flags])
            return {gpu: begun[text, gpu].result() for gpu in gpus}

        yield build


def test_no_option_comes_twice() -> None:
    names = [option.partition("=")[0] for option in (*source.OPTIONS, *source.ADDED)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", source.FILES)
def test_kernels_fit_every_gpu_within_their_stated_caps(compiler: Compile, file: str) -> None:
    text, caps = source.source(file), source.kernels(file)
    builds = compiler(text, f"{file}.cu", *GPUS)
    print(_table(file, caps, builds))
    wrong = [f"{gpu}: {fault}" for gpu, build in builds.items() for fault in faults(build, caps, text)]
    assert not wrong, f"{file}.cu:\n" + "\n".join(wrong)


@pytest.mark.parametrize(("file", "family"), RESTS_ON)
def test_hopper_gets_the_instructions_that_speed_rests_on(
    compiler: Compile, tmp_path: Path, file: str, family: str
) -> None:
    found = instructions(compiler(source.source(file), f"{file}.cu", HOPPER)[HOPPER].cubin, tmp_path)
    kernels = [kernel for kernel in found if kernel.startswith(family)]
    assert kernels
    for kernel in kernels:
        for needed in RESTS_ON[file, family]:
            has = any(re.fullmatch(needed, op) for op in found[kernel])
            assert has, f"{kernel} has no {needed}, only {sorted(found[kernel])}"


@pytest.mark.parametrize("file", source.FILES)
def test_no_kernel_touches_local_memory(compiler: Compile, tmp_path: Path, file: str) -> None:
    found = instructions(compiler(source.source(file), f"{file}.cu", HOPPER)[HOPPER].cubin, tmp_path)
    assert set(found) == set(source.kernels(file))
    assert not {kernel: ops & set(_LOCAL) for kernel, ops in found.items() if ops & set(_LOCAL)}


def test_kernels_that_stage_x_take_no_more_shared_memory_than_plans_leave(compiler: Compile) -> None:
    built = {
        name: usage.shared
        for file in ("linear", "fused")
        for name, usage in compiler(source.source(file), f"{file}.cu", HOPPER)[HOPPER].usage.items()
    }
    for name in ("q4_staged", "qkv_4", "residual_4", "gate_up_4", "head_4"):
        assert built[name] <= q4.TAKEN_BYTES, name


# --- the gates catch what they are for

_PLANTED = """
extern "C" __global__ void __launch_bounds__(64) plain(float* out) { out[threadIdx.x] = 1.f; }

extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* out, const float* x) {
  float held[64];  // in 32 registers: 1024 threads, twice, are promised room
#pragma unroll
  for (int i = 0; i < 64; i++) held[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) out[i * 1024 + threadIdx.x] = held[i] * held[63 - i];
}

extern "C" __global__ void __launch_bounds__(64) stacked(float* out, const int* at) {
  float held[64];  // indexed by data, so never in registers
  for (int i = 0; i < 64; i++) held[i] = at[i];
  for (int i = 0; i < 64; i++) held[at[i] & 63] += 1.f;
  out[threadIdx.x] = held[at[threadIdx.x] & 63];
}

extern "C" __global__ void __launch_bounds__(48) ragged(float* out) { out[threadIdx.x] = 1.f; }

extern "C" __global__ void unbounded(float* out) { int unused; out[threadIdx.x] = 1.f; }
"""


def test_planted_faults_are_caught(compiler: Compile) -> None:
    caps = {"plain": 4, "spilling": 255, "stacked": 64, "ragged": 32, "unbounded": 32, "absent": 32}
    wrong = "\n".join(faults(compiler(_PLANTED, "planted.cu", HOPPER)[HOPPER], caps, _PLANTED))
    for fault in (
        r"^plain: \d+ registers, stated at most 4$",
        r"^spilling: \d+ bytes spilled$",
        r"^spilling: 255 registers a thread leave no room for the promised 2 blocks of 1024$",
        r"^stacked: \d+ bytes of stack$",
        r"^ragged: launch bounds of 48 threads",
        r"^unbounded: no launch bounds$",
        r"^absent: stated, but not built$",
        r"^planted.cu\(\d+\): warning",
    ):
        assert re.search(fault, wrong, re.MULTILINE), f"{fault} is not in\n{wrong}"
    assert not re.search(r"^plain: \d+ bytes", wrong, re.MULTILINE), "nothing is wrong with its stack"


def test_planted_local_memory_is_seen_in_the_instructions(compiler: Compile, tmp_path: Path) -> None:
    found = instructions(compiler(_PLANTED, "planted.cu", HOPPER)[HOPPER].cubin, tmp_path)
    assert found["stacked"] & set(_LOCAL)
    assert not found["plain"] & set(_LOCAL)


def test_what_does_not_compile_is_reported_with_its_real_file_and_line(compiler: Compile) -> None:
    text = '#line 1 "a.cu"\n#line 1 "b.cuh"\n__device__ int one() { return wrong; }\n#line 2 "a.cu"\n'
    with pytest.raises(AssertionError, match=r"b\.cuh\(1\): error"):
        compiler(text, "a.cu", HOPPER)


def faults(build: Build, caps: dict[str, int], text: str) -> list[str]:
    """What is wrong with one build, a line each; `caps` is what the file states, `text` where it says so."""
    wrong = [line for line in build.log.splitlines() if "warning" in line]
    wrong += [f"{name}: stated, but not built" for name in caps if name not in build.usage]
    wrong += [f"{name}: built, but states no cap" for name in build.usage if name not in caps]
    bounds = {name: (int(threads), int(blocks or 1)) for threads, blocks, name in _BOUNDS.findall(text)}
    for name, usage in build.usage.items():
        if name in caps:
            wrong += [f"{name}: {fault}" for fault in _faults(usage, caps[name], bounds.get(name))]
    return wrong


def _faults(usage: Usage, cap: int, bounds: tuple[int, int] | None) -> list[str]:
    wrong = []
    if usage.stack:
        wrong.append(f"{usage.stack} bytes of stack")
    if usage.spills:
        wrong.append(f"{usage.spills} bytes spilled")
    if usage.registers > cap:
        wrong.append(f"{usage.registers} registers, stated at most {cap}")
    if usage.shared > STATIC_SHARED:
        wrong.append(f"{usage.shared} bytes of static shared memory, a block may have {STATIC_SHARED}")
    if bounds is None:
        return [*wrong, "no launch bounds"]
    threads, blocks = bounds
    if threads % WARP or not WARP <= threads <= MOST_THREADS:
        wrong.append(f"launch bounds of {threads} threads are not whole warps up to {MOST_THREADS}")
    if -(-cap // 8) * 8 * threads * blocks > REGISTERS:  # given out by eights
        wrong.append(
            f"{cap} registers a thread leave no room for the promised {blocks} blocks of {threads}"
        )
    return wrong


def instructions(cubin: bytes, folder: Path) -> dict[str, set[str]]:
    """The instruction names in every kernel of `cubin`, with their modifiers, as in LDG.E.128.

    LDL and STL stand bare as well, whatever follows them.
    """
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    command = [str(_toolkit("bin/nvdisasm")), "-c", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found: dict[str, set[str]] = {}
    for part in re.split(r"(?m)^\.text\.", listing)[1:]:
        ops = set(re.findall(r"(?m)^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", part))
        found[part.partition(":")[0]] = ops | {op.partition(".")[0] for op in ops if op.startswith(_LOCAL)}
    return found


def _build(text: str, name: str, options: list[str]) -> Build:
    nvrtc: Any = import_module("cuda.bindings.nvrtc")

    def asked(answer):
        code, *values = answer
        assert code == nvrtc.nvrtcResult.NVRTC_SUCCESS, code
        return values[0] if values else None

    program = asked(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = bytearray(asked(nvrtc.nvrtcGetProgramLogSize(program)))
    asked(nvrtc.nvrtcGetProgramLog(program, log))
    report = log.rstrip(b"\0").decode()
    assert code == nvrtc.nvrtcResult.NVRTC_SUCCESS, f"{name} {options[0]}: {report}"
    cubin = bytearray(asked(nvrtc.nvrtcGetCUBINSize(program)))
    asked(nvrtc.nvrtcGetCUBIN(program, cubin))
    asked(nvrtc.nvrtcDestroyProgram(program))
    return Build(bytes(cubin), report, _usage(report))


def _usage(report: str) -> dict[str, Usage]:
    """Of every kernel in a report; functions that were not inlined count with the kernel before them."""
    usage = {}
    for part in report.split("Compiling entry function '")[1:]:
        numbers = {what: [int(n) for n in pattern.findall(part)] for what, pattern in _NUMBERS.items()}
        assert numbers["registers"] and numbers["stack"], f"an unknown form of report: {part}"
        usage[part.partition("'")[0]] = Usage(**{what: sum(found) for what, found in numbers.items()})
    return usage


def _toolkit(file: str) -> Path:
    """A file that came with one of NVIDIA's wheels."""
    nvidia = pytest.importorskip("nvidia", reason="pip install nvidia-cuda-runtime nvidia-cuda-nvdisasm")
    for folder in nvidia.__path__:
        for path in Path(folder).glob(f"cu*/{file}"):
            return path
    pytest.skip(f"no wheel of NVIDIA's holds {file}; pip install nvidia-cuda-runtime nvidia-cuda-nvdisasm")


def _table(file: str, caps: dict[str, int], builds: dict[str, Build]) -> str:
    """Registers per GPU beside the cap, and static shared memory."""
    head = f"\n{file + '.cu':32}{'cap':>5}" + "".join(f"{gpu.removeprefix('sm_'):>5}" for gpu in GPUS)
    lines = [f"{head}  shared"]
    for name, cap in caps.items():
        used = [builds[gpu].usage.get(name) for gpu in GPUS]
        shared = max((each.shared for each in used if each), default=0)
        counts = "".join(f"{each.registers if each else '-':>5}" for each in used)
        lines.append(f"{name:32}{cap:>5}{counts}{shared:>8}")
    return "\n".join(lines)
