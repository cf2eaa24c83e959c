"""What a benchmark asks of a device besides the ops: reading, copying, launching nothing, random bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.cuda.device import Device
from kernels.errors import ShapeError

VECTOR_BYTES = 16
BLOCKS_EACH = 4  # of 512 threads, per processor: as many as any has room for, each with 64 bytes in flight
READERS, WRITERS = 512, 256  # threads of a block
EMPTY = {0: (0, 0), 4: (2, 2), 10: (6, 4)}  # arguments of the empty kernels: pointers and numbers among them
ANY = (0xFFFFFFFF, 0)
MASKS = {  # dtype -> (mask, set) of a word of random bits, so that floats are 0.5 to 1 in size
    np.dtype(np.float32): (0x807FFFFF, 0x3F000000),
    np.dtype(np.float16): (0x83FF83FF, 0x38003800),
    np.dtype(np.uint16): (0x807F807F, 0x3F003F00),  # the bits of bf16
}


def read(found: Any, x: Any, *, device: Device) -> None:
    """found [blocks] u32 = exclusive ors of parts of x, which is read once; `read_blocks` says how many.

    Raises
    ------
    ShapeError   unless `x` is a whole number of 16 bytes
    """
    vectors = _vectors("read", x)
    device.kernel("probe", "read_only")(found.shape, (READERS,), (x, found, np.uint64(vectors)))


def read_blocks(device: Device) -> int:
    """Blocks that keep every processor of `device` busy reading."""
    return BLOCKS_EACH * device.processors


def copy(out: Any, x: Any, *, device: Device) -> None:
    """out = x by a kernel; both a whole number of 16 bytes."""
    vectors = _vectors("copy", x)
    if out.nbytes != x.nbytes:
        raise ShapeError(f"copy: {x.nbytes} bytes do not fit {out.nbytes}")
    grid = (read_blocks(device),)
    device.kernel("probe", "read_write")(grid, (READERS,), (x, out, np.uint64(vectors)))


def random(out: Any, seed: int, *, device: Device) -> None:
    """Fill `out` with bits that depend on `seed`: as floats (f32, f16, bf16 as u16) 0.5 to 1 in size.

    Up to 3 bytes behind the last whole word of 4 stay as they are.
    """
    mask, ones = MASKS.get(np.dtype(out.dtype), ANY)
    words = out.reshape(-1).view(np.uint8)[: out.nbytes // 4 * 4].view(np.uint32)
    if not words.size:
        return
    grid = (min(-(-words.size // WRITERS), 8 * read_blocks(device)),)
    numbers = (np.uint64(words.size), np.uint32(seed), np.uint32(mask), np.uint32(ones))
    device.kernel("probe", "random_words")(grid, (WRITERS,), (words, *numbers))


def nothing(arguments: int, *, device: Device) -> Callable[[], None]:
    """A launch of a kernel that does nothing and takes so many arguments, one of EMPTY."""
    pointers, numbers = EMPTY[arguments]
    array = device.scratch("probe nothing", (1,), np.float32)
    launch = device.kernel("probe", f"empty{arguments}")
    args = (array,) * pointers + (np.int32(0),) * numbers
    return lambda: launch((1,), (32,), args)


def _vectors(what: str, x: Any) -> int:
    if x.nbytes % VECTOR_BYTES:
        raise ShapeError(f"{what}: expected a multiple of {VECTOR_BYTES} bytes, got {x.nbytes}")
    return x.nbytes // VECTOR_BYTES
