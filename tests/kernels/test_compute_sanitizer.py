"""NVIDIA's own checker over the op suite on a card: `pytest -m gpu tests/kernels/test_compute_sanitizer.py`.

CuPy hands out parts of large blocks, inside which no overrun shows; here every array is an allocation of its
own. The tool comes with the CUDA toolkit, or from PyPI in nvidia-cuda-sanitizer-api.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from kernels import BackendMissing, open_backend

HERE = Path(__file__).parent
NAME = "compute-sanitizer"
FOUND = 86  # the exit code we ask for where something was found; pytest's own go up to 5
KERNELS_ALONE = ("--report-api-errors", "no")  # CuPy asks for all attributes, of which some are refused
LONGEST_S = 1800  # of one tool; racecheck makes a kernel up to a hundred times slower
SUITE = ("test_ops.py", "test_state_ops.py", "test_fused.py", "test_memory.py", "test_cuda_probe.py")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
RUN = """
import sys
import cupy
import pytest
cupy.cuda.set_allocator(None)
sys.exit(pytest.main(sys.argv[1:]))
"""
OVERRUN = """
import cupy
cupy.cuda.set_allocator(None)
text = 'extern "C" __global__ void past(float* x) { x[blockDim.x] = 1; }'
cupy.RawKernel(text, "past")((1,), (32,), (cupy.zeros(32, "f4"),))
cupy.cuda.runtime.deviceSynchronize()
"""


def find_tool(environment: Mapping[str, str], packages: Iterable[Path]) -> Path | None:
    """The checker: on PATH, in the toolkit of CUDA_HOME or CUDA_PATH, in the usual one, in a wheel."""
    if found := shutil.which(NAME, path=environment.get("PATH", "")):
        return Path(found)
    named = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    for folder in (*named, "/usr/local/cuda"):
        if found := shutil.which(NAME, path=f"{folder}/bin{os.pathsep}{folder}/compute-sanitizer"):
            return Path(found)
    wheels = (path for package in packages for path in sorted(package.rglob(NAME)))
    return next((path for path in wheels if path.is_file() and os.access(path, os.X_OK)), None)


@pytest.fixture(scope="module")
def tool() -> Path:
    try:
        open_backend("cuda")
    except BackendMissing as reason:
        pytest.skip(str(reason))
    spec = importlib.util.find_spec("nvidia")  # a namespace that the wheels of the toolkit share
    found = find_tool(os.environ, [Path(place) for place in (spec and spec.submodule_search_locations) or ()])
    if found is None:
        pytest.skip(f"{NAME} is not installed; pip install nvidia-cuda-sanitizer-api, or the CUDA toolkit")
    return found


def checked(tool: Path, kind: str, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`script` in a Python of its own, watched."""
    options = ["--tool", kind, "--error-exitcode", FOUND, *KERNELS_ALONE]
    command = [tool, *options, sys.executable, "-c", script, *words]
    return subprocess.run(
        list(map(str, command)), cwd=HERE.parents[1], capture_output=True, text=True, timeout=LONGEST_S,
        check=False,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.slow
def test_the_checker_sees_an_overrun_that_is_planted(tool: Path):
    done = checked(tool, "memcheck", OVERRUN)
    assert done.returncode == FOUND and "past" in done.stdout, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOOLS)
def test_no_kernel_of_the_suite_is_complained_of(tool: Path, kind: str):
    files = [str(HERE / name) for name in SUITE]
    done = checked(tool, kind, RUN, "-m", "gpu", "-x", "-q", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name == "nt", reason="the files made here run nowhere on Windows")
def test_the_checker_is_found_on_the_path_then_in_a_toolkit_then_in_a_wheel(tmp_path: Path):
    nothing = {"PATH": str(tmp_path / "empty")}
    if not Path("/usr/local/cuda").exists():
        assert find_tool(nothing, [tmp_path]) is None
    wheel = executable(tmp_path / "nvidia/cu13/bin" / NAME)
    if not Path("/usr/local/cuda").exists():
        assert find_tool(nothing, [tmp_path / "nvidia"]) == wheel
    toolkit = executable(tmp_path / "toolkit/compute-sanitizer" / NAME)
    assert find_tool(nothing | {"CUDA_HOME": str(tmp_path / "toolkit")}, [tmp_path / "nvidia"]) == toolkit
    path = executable(tmp_path / "path" / NAME)
    named = {"PATH": str(path.parent), "CUDA_HOME": str(tmp_path / "toolkit")}
    assert find_tool(named, [tmp_path / "nvidia"]) == path
