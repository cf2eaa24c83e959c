"""What this machine is: processor, memory, Python, NumPy and the threads its BLAS takes."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "OMP_NUM_THREADS")
MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def describe_machine() -> dict[str, Any]:
    """Everything a figure in a table depends on, as plain values."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": blas_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "blas": blas(),
    }


def cpu_model() -> str:
    """The processor as it calls itself."""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine() or "an unknown processor"


def cores() -> int:
    """Cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blas() -> str:
    """NumPy's matrix library and its version."""
    found: Any = np.show_config(mode="dicts")
    entry = (found or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{entry.get('name', 'unknown')} {entry.get('version', '')}".strip()


def blas_threads() -> tuple[int, str]:
    """How many threads a matrix product takes, and who says so: the library, the environment, or nobody."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        for name in THREADS:
            if os.environ.get(name, "").isdigit():
                return int(os.environ[name]), name
        return cores(), "all cores, as nothing is set"
    counts = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return (max(counts), "threadpoolctl") if counts else (cores(), "all cores, as nothing is set")


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Matrix products take one thread inside; yields whether that could be seen to."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        yield blas_threads()[0] == 1
        return
    with threadpool_limits(1, user_api="blas"):
        yield True


def nvidia_driver(path: str = "/proc/driver/nvidia/version") -> str | None:
    """The version of the driver, such as 580.65.06; None where the system does not say."""
    said = "\n".join(_lines(path))
    found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", said)
    return found[1] if found else None


def memory_available() -> int | None:
    """Bytes a program may still take, a container's limit included; None where the system does not say."""
    found = re.findall(r"MemAvailable:\s+(\d+) kB", "\n".join(_lines("/proc/meminfo")))
    room = [1024 * int(kib) for kib in found]
    if not room and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        room = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits = [int(line) for path in MEMORY_LIMITS for line in _lines(path) if line.strip().isdigit()]
    return min(room + limits, default=None)


def peak_memory() -> int | None:
    """The most bytes of memory this process ever held; None on Windows."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size(count: float) -> str:
    """Bytes for people: `size(1_700_000)` is "1.7 MB"."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{count:.1f} {units[0]}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not this system
        return []
