"""The CUDA C++ of this folder, as one text per file.

Headers are put in place of their `#include "..."` line: a compiler's cache then sees every change, and no
include path is needed. `cuda_fp16.h` stays an include of the toolkit.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FILES = ("linear", "weights", "norm", "rope", "attention", "conv", "pointwise", "select", "fused", "probe")
OPTIONS = (
    "-std=c++17",
    "-lineinfo",  # costs no instruction, and lets profilers name source lines
)
ADDED = (  # by CuPy, to whatever it is given; before 12.9 NVRTC refuses an option that comes twice
    "-ftz=true",
    "--device-as-default-execution-space",
)
FOLDER = Path(__file__).parent

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
_KERNEL = re.compile(
    r"// at most (\d+) registers\n"
    r'extern "C" __global__ void\s+(?:__launch_bounds__\((\d+)(?:, *\d+)?\)\s+)?(\w+)\('
)


@cache
def source(file: str) -> str:
    """`file`.cu with its headers in place, each once; `#line` keeps messages pointing at the real files.

    `#pragma once` goes: it has no meaning in one text, and compilers say so.
    """
    seen: set[str] = set()

    def text(name: str) -> str:
        def include(found: re.Match[str]) -> str:
            header = found[1]
            if header in seen:
                return ""
            seen.add(header)
            after = body.count("\n", 0, found.end()) + 1
            return f'{text(header)}#line {after} "{name}"\n'

        body = (FOLDER / name).read_text(encoding="utf-8").replace("#pragma once\n", "\n")
        return f'#line 1 "{name}"\n' + _INCLUDE.sub(include, body)

    return text(f"{file}.cu")


@cache
def kernels(file: str) -> dict[str, int]:
    """The kernels of `file`.cu by name, each with the most registers it may take, as its comment states."""
    return {name: int(most) for most, _, name in _KERNEL.findall((FOLDER / f"{file}.cu").read_text())}
