"""What stands between this process and a GPU, and what a failure on the GPU means; by plain facts alone.

card.py gathers the facts from CuPy; nothing here imports it, so every message can be had without a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kernels.errors import DeviceLost, KernelError, OutOfMemory

OLDEST = (7, 5)  # Turing: the first whose tensor cores take the fragments that linear.cu is written for
EXTRAS = {12: "cuda12", 13: "cuda13"}  # of this distribution, by the CUDA version their CuPy is built for
DRIVERS = {12: 525, 13: 580}  # the first driver branch for each, by NVIDIA's table of minor versions
MEMORY = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
STICKY = frozenset(  # after these the context is broken, and the driver answers every call with one of them
    {4, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999}
)  # by cuda.h; the runtime shares these numbers
SMALLER = "take a smaller context, fewer lanes, or kv: q8"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was met on the way to a GPU, as far as the way went.

    packages : installed distributions that bring CuPy
    importable : whether there is a module of that name; fault : why it does not import all the same
    cache_fault : why it cannot keep what it compiles
    version : CuPy's; built : the CUDA version it was built for, as 13020; amd : it was built for ROCm
    driver : the newest CUDA version the driver knows, as 12040; 0 where there is no driver
    refusal : what the driver answers when asked for devices, other than a number
    devices : how many it sees; index : the one asked for
    name, capability, memory : of that one; memory is (free, total) in bytes
    compiler : NVRTC's version, such as (13, 0), None where it cannot be loaded
    build_fault : why a kernel of one line does not build; blas_fault : why cuBLAS does not load
    """

    packages: tuple[str, ...] = ()
    importable: bool = False
    fault: str = ""
    cache_fault: str = ""
    version: str = ""
    built: int = 0
    amd: bool = False
    driver: int = 0
    refusal: str = ""
    devices: int = 0
    index: int = 0
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)
    compiler: tuple[int, int] | None = None
    build_fault: str = ""
    blas_fault: str = ""

    @property
    def package(self) -> str:
        """The installed CuPy, as pip calls it."""
        return self.packages[0] if self.packages else "cupy"


def diagnose(facts: Facts) -> str | None:
    """Why the GPU cannot be used, with the cure; None where it can."""
    return _installation(facts) or _driver(facts) or _device(facts) or _toolkit(facts)


def version(cuda: int) -> str:
    """12040 as people write it: 12.4."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def install(cuda: int) -> str:
    """The command that brings CuPy for the newest CUDA that a driver of version `cuda` runs."""
    return f"pip install 'headrace[{EXTRAS[min(cuda // 1000, max(EXTRAS))]}]'"


def _installation(facts: Facts) -> str | None:
    if not facts.importable:
        return (
            "CuPy is not installed; pip install 'headrace[cuda13]' where the first lines of nvidia-smi say "
            "CUDA Version 13 or later, 'headrace[cuda12]' where they say 12"
        )
    if len(facts.packages) > 1:
        names = " ".join(facts.packages)
        return (
            f"{len(facts.packages)} packages bring CuPy and overwrite each other: {names}; pip uninstall "
            f"{names}, then install the one that fits the driver: headrace[cuda12] or headrace[cuda13]"
        )
    if facts.cache_fault:
        return (
            f"CuPy cannot keep what it compiles: {facts.cache_fault}; set CUPY_CACHE_DIR to a folder that "
            "can be written"
        )
    if facts.fault:
        return f"{facts.package} does not import: {facts.fault}; {_again(facts)}"
    if facts.amd:
        return f"{facts.package} is built for AMD GPUs; pip uninstall {facts.package}, then {install(13000)}"
    return None


def _driver(facts: Facts) -> str | None:
    wanted = facts.built // 1000
    if not facts.driver:
        return (
            "there is no NVIDIA driver; install one (nvidia-smi then lists the GPU), or give the container "
            "its GPUs (--gpus all)"
        )
    if facts.driver // 1000 < wanted:
        cure = f"install a driver of branch {DRIVERS.get(wanted, max(DRIVERS.values()))} or later"
        if facts.driver // 1000 in EXTRAS:
            cure = f"pip uninstall {facts.package} && {install(facts.driver)}, or {cure}"
        return (
            f"the driver is too old for {facts.package}: expected CUDA {wanted}.0 or later, found "
            f"{version(facts.driver)}; {cure}"
        )
    if facts.refusal:
        return (
            f"the driver refuses: {facts.refusal}; nvidia-smi lists programs that fill or hold the GPU, and "
            "after an update of the driver the machine wants a restart"
        )
    return None


def _device(facts: Facts) -> str | None:
    if not facts.devices:
        return (
            "the driver sees no GPU; see nvidia-smi, and whether CUDA_VISIBLE_DEVICES is set to hide it "
            "(unset shows all)"
        )
    if not 0 <= facts.index < facts.devices:
        return f"there is no GPU {facts.index}; expected 0 to {facts.devices - 1}"
    if facts.capability < OLDEST:
        return (
            f"{facts.name} has compute capability {_dotted(facts.capability)}, expected {_dotted(OLDEST)} "
            "(Turing, 2018) or later; use backend: portable"
        )
    return None


def _toolkit(facts: Facts) -> str | None:
    if facts.compiler is None:
        return f"NVRTC, which compiles the kernels, is missing: {facts.build_fault}; {_again(facts)}"
    if facts.build_fault:
        what = "CUDA's headers are missing" if _headers(facts.build_fault) else "a kernel of one line fails"
        return f"{what}: {facts.build_fault}; {_again(facts)}"
    if facts.blas_fault:
        return f"cuBLAS is missing: {facts.blas_fault}; {_again(facts)}"
    return None


def _headers(fault: str) -> bool:
    return bool(re.search(r"cannot open source file|CUDA headers|CUDA root directory", fault))


def _again(facts: Facts) -> str:
    """[ctk] of CuPy brings NVRTC, headers and cuBLAS of its own; our extras ask for it."""
    cuda = facts.built if facts.built // 1000 in EXTRAS else 13000
    return f"{install(cuda)} brings CUDA's libraries and headers along"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def failure(status: int, said: str, doing: str, device: str) -> KernelError:
    """What CUDA's error number `status` is to our callers.

    said : the error's name and text; doing : what was under way
    """
    if status in STICKY:
        return DeviceLost(
            f"cuda: {device} stopped answering, noticed while {doing}: {said}; this process cannot use it "
            "any more: start the program again, and if it comes back look for Xid lines in dmesg"
        )
    if status == MEMORY:
        return OutOfMemory(f"cuda: {device} ran out of memory while {doing}; {SMALLER}")
    return KernelError(f"cuda: {doing} on {device}: {said}")


def out_of_memory(asked: int, free: int, total: int, device: str) -> OutOfMemory:
    """No room for `asked` bytes."""
    return OutOfMemory(
        f"cuda: {megabytes(asked)} asked for, {megabytes(free)} of {megabytes(total)} on {device} are free; "
        f"{SMALLER}"
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def first_error(log: str) -> str:
    """The line of a compiler's log that says what is wrong, such as `norm.cu(42): error: ...`."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), lines[0] if lines else "no log")


def last_line(text: str) -> str:
    """What a many-line message ends in, rules of `=` left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip("=- \t")]
    return lines[-1] if lines else text.strip()
