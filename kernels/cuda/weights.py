"""Matrices on the device: a file's blocks brought into our layouts, and back to f16 for cuBLAS.

    f16, bf16     as stored, [N, M]; bf16 as its bits
    q8_0          bytes [N, M], scales [N, M / 32]
    q4_0          in the order of tensor core fragments, see q4.cuh: [tiles, steps, 32 lanes, 4 words],
                  scales [tiles, steps, 8, 4]; or by rows, see q4_rows.cuh: [N, M / 32, 4 words], [N, M / 32]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels import quant
from kernels.cuda.device import Device
from kernels.cuda.q4 import STEP, TILE
from kernels.tensor import QuantTensor

PIECE_BYTES = 64 << 20  # of a file on the device at a time
WARPS = 4  # of a block
BLOCK = quant.BLOCK_WEIGHTS


def adopt(raw: np.ndarray, kind: str, shape: tuple[int, ...], *, layout: str, device: Device) -> QuantTensor:
    """A matrix [N, M] from the bytes of its file, laid out as this backend reads it.

    layout : of q4_0, "fragment" or "rows". Which one is faster depends on shape and card: the bench times
        both on every shape and prints which wins; fragments are the default until one says otherwise.
    """
    if kind in ("f16", "bf16"):
        stored = raw.view(np.float16 if kind == "f16" else np.uint16)
        return QuantTensor(kind, shape, (device.upload(stored.reshape(shape)),))
    rows, columns = shape
    blocks = columns // BLOCK
    if kind == "q8_0":
        tiles = device.empty((rows, columns), np.int8), device.empty((rows, blocks), np.float16)
    elif layout == "rows":
        tiles = device.empty((rows, blocks, 4), np.uint32), device.empty((rows, blocks), np.float16)
    else:
        held = -(-rows // TILE), -(-columns // STEP)
        tiles = device.empty((*held, 32, 4), np.uint32), device.empty((*held, 8, 4), np.float16)
    weights = QuantTensor(kind, shape, tiles)
    if rows:
        _repack(weights, raw.reshape(rows, -1), device)
    return weights


def in_fragments(w: QuantTensor) -> bool:
    """Whether a q4_0 matrix lies in fragment order."""
    return len(w.tiles[0].shape) == 4


def part(w: QuantTensor, start: int, stop: int) -> QuantTensor:
    """Rows start..stop; in fragment order `start` is the first row of a tile."""
    step = TILE if w.kind == "q4_0" and in_fragments(w) else 1
    tiles = tuple(plane[start // step : -(-stop // step)] for plane in w.tiles)
    return QuantTensor(w.kind, (stop - start, w.shape[1]), tiles)


def dequantise(out: Any, w: QuantTensor, *, device: Device) -> None:
    """out f16 [N, M] = q8_0 or q4_0, rounded. What exceeds 65504 becomes infinite; no trained weight does."""
    rows, blocks = w.shape[0], w.shape[1] // BLOCK
    if w.kind == "q4_0" and in_fragments(w):
        name, warps = "dequantise_fragment", _warps(w.tiles[0])
        sizes = [np.int32(rows), np.int32(blocks)]
    else:
        name, warps = "dequantise_q8_0" if w.kind == "q8_0" else "dequantise_rows", -(-rows * blocks // 8)
        sizes = [np.int32(rows * blocks)]
    device.kernel("weights", name)((-(-warps // WARPS),), (32 * WARPS,), (out, *w.tiles, *sizes))


def _repack(w: QuantTensor, raw: np.ndarray, device: Device) -> None:
    """The file's rows uint8 [N, bytes], a piece at a time."""
    rows, row_bytes = raw.shape
    blocks = w.shape[1] // BLOCK
    height = max(TILE, PIECE_BYTES // max(1, row_bytes) // TILE * TILE)
    for start in range(0, rows, height):
        piece = part(w, start, min(start + height, rows))
        words = raw[start : start + height].reshape(-1).view(np.uint16)
        held = device.upload(words, out=device.scratch("weights.raw", words.shape, np.uint16))
        if w.kind == "q4_0" and in_fragments(w):
            name, warps = "repack_fragment", _warps(piece.tiles[0])
            sizes = [np.int32(piece.shape[0]), np.int32(blocks), np.int32(len(piece.tiles[0]))]
        else:
            count = piece.shape[0] * blocks
            name, warps = "repack_q8_0" if w.kind == "q8_0" else "repack_rows", -(-count // 32)
            sizes = [np.int32(count)]
        device.kernel("weights", name)((-(-warps // WARPS),), (32 * WARPS,), (*piece.tiles, held, *sizes))


def _warps(plane: Any) -> int:
    """One per step of 16 rows x 64 columns."""
    return plane.shape[0] * plane.shape[1]
