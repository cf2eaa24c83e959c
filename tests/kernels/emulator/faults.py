"""Runs planted faults, and the right forms of them; what a sanitizer has to say ends a process of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from tests.kernels.emulator import build
from tests.kernels.emulator.device import EmulatedDevice
from tests.kernels.emulator.launch import LaunchError

SOURCE = Path(__file__).with_suffix(".cu")
SEEDS = (0, 1, 2, 3)
THREADS = 64
TWO_BLOCKS = ("order_of_blocks", "ticket_without_a_barrier", "ticket_without_a_fence")
FINDINGS = {  # what a sanitizer prints before it ends the process
    "asan": r"ERROR: AddressSanitizer: ([\w-]+)",
    "ubsan": r"runtime error: (.*)",
    "tsan": r"WARNING: ThreadSanitizer: ([\w ]+)",
}


def faults() -> tuple[str, ...]:
    return tuple(name for name in build.bounds(SOURCE.read_text()) if name != "many_kinds")


def run(device: EmulatedDevice, fault: str, faulty: bool) -> np.ndarray:
    """y of one kernel; with `faulty`, of its wrong form.

    Raises
    ------
    LaunchError   where the emulator itself stopped it
    """
    slack = 1 if device.mode == "asan" else 2  # elsewhere a step past the end must not hit this process
    y = device.empty((slack * THREADS,), np.float32)[:THREADS]
    x = device.upload(np.arange(THREADS, dtype=np.float32))
    kernel = device.load(SOURCE.read_text(encoding="utf-8"), "faults", fault)
    work = (device.zeros((3 * THREADS,), np.float32),) if len(kernel.entry.parameters) == 4 else ()
    grid = (2 if fault in TWO_BLOCKS else 1,)
    kernel(grid, (THREADS,), (y, x, *work, np.int32(faulty)), shared_mem=4 * THREADS)
    return device.fetch(y).wait()


def found(mode: str, fault: str, faulty: bool) -> str:
    """How it showed: what was reported, NaN, values that change with the schedule; or nothing, "".

    It is a matter of schedules, so several are tried; the values of the first are the right ones.
    """
    right = run(EmulatedDevice("plain"), fault, False)
    for seed in SEEDS:
        try:
            y = run(EmulatedDevice(mode, seed=seed), fault, faulty)
        except LaunchError as reason:
            return f"stopped: {reason}"
        if np.isnan(y).any():
            return "NaN"
        if not np.array_equal(y, right):
            return "wrong values"
    return ""


def found_in_a_process(mode: str, fault: str, faulty: bool) -> str:
    """The same under a sanitizer, whose word comes first; with `fault` "all", for each of them in a row."""
    ran = build.run_apart(mode, "tests.kernels.emulator.faults", mode, fault, str(int(faulty)))
    said = re.search(FINDINGS[mode], ran.stderr)
    if said:
        return f"{mode}: {said[1]}"
    if ran.returncode:
        raise RuntimeError(f"{fault} under {mode} ended with {ran.returncode}:\n{ran.stderr}")
    return ran.stdout.strip()


if __name__ == "__main__":
    its_mode, its_fault, its_faulty = sys.argv[1:]
    for each in faults() if its_fault == "all" else [its_fault]:
        print(found(its_mode, each, its_faulty == "1"))
