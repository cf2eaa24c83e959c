"""What a card's memory, launches and single ops take: products with every matrix of the model, attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from kernels import Ring, quant
from kernels.cuda import probe
from kernels.cuda.backend import Cuda, Layout
from kernels.cuda.device import Device
from kernels.cuda.linear import DP4A_ROWS
from pipeline.tools.card_clock import Effort, Stopwatch, Timing
from pipeline.tools.card_figures import COPIED, READ, Place
from pipeline.tools.card_peers import SDPA, Peers, Product
from pipeline.tools.card_run import KV, CardRun, Sweep
from stages.voxtral.config import Config, Tower

OVERTAKEN = 64  # rows of x from which f16 weights and cuBLAS, where the layout by rows goes, may be faster
BLOCKS = 1 << 16  # random Q4_0 blocks, repeated to the size of a matrix
SEED = 5
READS, COPIES = 4, 4  # in one recording


def read_speed(ops: Cuda) -> float:
    """Bytes a second that the GPU reads from its own memory."""
    nbytes = _most(ops.device, Sweep().read_bytes)
    x = ops.device.zeros((nbytes // 4,), np.uint32)
    return nbytes * READS / Stopwatch(Effort(samples=3)).recorded(ops, _reading(ops.device, x)).seconds


def measure_memory(run: CardRun) -> None:
    """How fast memory is read, and read and written."""
    device = run.ops.device
    nbytes = _most(device, run.sweep.read_bytes)
    x, out = (device.empty((nbytes // 4,), np.uint32) for _ in range(2))
    probe.random(x, SEED, device=device)
    reads = _reading(device, x)

    def copies() -> None:
        for _ in range(COPIES):
            probe.copy(out, x, device=device)

    place = Place("memory", "1 GiB" if nbytes == 1 << 30 else f"{nbytes} bytes")
    run.take(place, READ, lambda: run.watch.recorded(run.ops, reads) / READS, nbytes=nbytes)
    run.take(place, COPIED, lambda: run.watch.recorded(run.ops, copies) / COPIES, nbytes=2 * nbytes)


def _most(device: Device, nbytes: int) -> int:
    """As many bytes, if they and a copy fit easily, in whole vectors."""
    return min(nbytes, device.free_bytes() // 4) // 16 * 16


def _reading(device: Device, x: Any) -> Callable[[], None]:
    found = device.empty((probe.read_blocks(device),), np.uint32)

    def reads() -> None:
        for _ in range(READS):
            probe.read(found, x, device=device)

    return reads


def measure_launches(run: CardRun) -> None:
    """What a launch costs from Python, and what one kernel behind another costs in a recording."""
    for arguments in probe.EMPTY:
        launch = probe.nothing(arguments, device=run.ops.device)
        place = Place("launch", "an empty kernel", (("arguments", arguments),))
        run.take(place, "called from Python", partial(run.watch.called, run.ops, launch, run.sweep.calls))
        run.take(place, "behind another in a recording", partial(_chain, run, launch))


def _chain(run: CardRun, launch: Callable[[], None]) -> Timing:
    links = run.sweep.links

    def work() -> None:
        for _ in range(links):
            launch()

    return run.watch.recorded(run.ops, work) / links


def products(config: Config) -> dict[str, tuple[int, int]]:
    """The matrices [N, K] of one layer of each tower as they are multiplied, and the head."""
    found = {"decoder head": (config.decoder.vocab, config.decoder.dim)}
    towers: dict[str, Tower] = {"decoder": config.decoder, "encoder": config.encoder}
    for name, tower in towers.items():
        found |= {
            f"{name} q, k, v": (tower.q_width + 2 * tower.kv_width, tower.dim),
            f"{name} out": (tower.dim, tower.q_width),
            f"{name} gate, up": (2 * tower.hidden_dim, tower.dim),
            f"{name} down": (tower.dim, tower.hidden_dim),
        }
    return found


def measure_products(run: CardRun, peers: Peers) -> None:
    """Every matrix times few and many rows: in both layouts, in bf16, and by the peers."""
    for name, (outputs, inputs) in products(run.sweep.config).items():
        run.begin(f"products with {name}, {outputs} x {inputs}")
        ways = {
            "fragment": ("q4_0", _multiplied(run, "fragment", "q4_0", outputs, inputs)),
            "rows": ("q4_0", _multiplied(run, "rows", "q4_0", outputs, inputs)),
            "bf16": ("bf16", _multiplied(run, "fragment", "bf16", outputs, inputs)),
            "cuBLAS bf16": ("bf16", _cublas(run, outputs, inputs)),
            **peers.products(run.sweep, outputs, inputs),
        }
        for rows in run.sweep.rows:
            place = Place("product", name, (("outputs", outputs), ("inputs", inputs), ("rows", rows)))
            for variant, (kind, multiply) in ways.items():
                if variant != "rows" or rows <= DP4A_ROWS or rows >= OVERTAKEN:
                    moved = quant.nbytes(kind, (outputs, inputs)) + 4 * rows * (outputs + inputs)
                    run.take(place, variant, partial(multiply, rows), nbytes=moved)


def _multiplied(run: CardRun, layout: Layout, kind: str, outputs: int, inputs: int) -> Product:
    """Our own product; the matrices, as many as fill the pool, are made when it is first taken."""
    ops = run.variant(layout=layout)

    @cache
    def matrices() -> list[Any]:
        stored = quant.nbytes(kind, (outputs, inputs))
        copies = run.sweep.copies(stored)
        run.need(copies * stored)
        raw = random_blocks(stored) if kind == "q4_0" else random_bf16(stored)
        return [ops.adopt(raw, kind, (outputs, inputs)) for _ in range(copies)]

    def multiply(rows: int) -> Timing:
        x = ops.upload(np.random.default_rng(rows).standard_normal((rows, inputs), np.float32))
        out, held = ops.zeros((rows, outputs)), matrices()

        def work() -> None:
            for w in held:
                ops.linear(out, x, w)

        return run.watch.recorded(ops, work) / len(held)

    return multiply


def _cublas(run: CardRun, outputs: int, inputs: int) -> Product:
    """cuBLAS in bf16, by its own choice of kernel."""
    device = run.ops.device

    @cache
    def matrices() -> list[Any]:
        copies = run.sweep.copies(2 * outputs * inputs)
        run.need(2 * outputs * inputs * copies)
        made = [device.empty((outputs, inputs), np.uint16) for _ in range(copies)]
        for n, w in enumerate(made):
            probe.random(w, n, device=device)
        return made

    def multiply(rows: int) -> Timing:
        x, out, held = device.empty((rows, inputs), np.uint16), run.ops.zeros((rows, outputs)), matrices()
        probe.random(x, SEED, device=device)

        def work() -> None:
            for w in held:
                device.gemm(out, x, w, "bf16")

        return run.watch.recorded(run.ops, work) / len(held)

    return multiply


def random_blocks(nbytes: int) -> np.ndarray:
    """Q4_0 as it is stored, random nibbles under scales near a hundredth."""
    random = np.random.default_rng(SEED)
    blocks = np.empty(min(BLOCKS, nbytes // quant.Q4_BLOCK.itemsize), quant.Q4_BLOCK)
    blocks["scale"] = random.uniform(0.005, 0.015, len(blocks)).astype(np.float16)
    for half in ("front", "back"):
        blocks[half] = random.integers(1 << 64, size=len(blocks), dtype=np.uint64)
    return np.resize(blocks.view(np.uint8), nbytes)


def random_bf16(nbytes: int) -> np.ndarray:
    """bf16 as it is stored, 0.5 to 1 in size, both signs."""
    mask, ones = probe.MASKS[np.dtype(np.uint16)]
    words = np.random.default_rng(SEED).integers(1 << 32, size=min(BLOCKS, nbytes // 4), dtype=np.uint32)
    return np.resize((words & np.uint32(mask) | np.uint32(ones)).view(np.uint8), nbytes)


def measure_attention(run: CardRun, peers: Peers) -> None:
    """One layer's attention: the decoder's at every position, the encoder's at its full window."""
    config = run.sweep.config
    decoder, encoder = config.decoder, config.encoder
    cases: list[tuple[str, Tower, int, int]] = [("decoder", decoder, 1, at) for at in run.sweep.positions]
    cases.append(("encoder", encoder, config.downsample, encoder.window))
    for name, tower, items, position in cases:
        run.begin(f"attention of the {name} over {position} positions")
        for lanes in run.sweep.lanes:
            place = Place("attention", name, (("lanes", lanes), ("position", position)))
            for kv in KV:
                ops = run.variant(kv=kv)
                moved = lanes * ops.ring_bytes(tower.kv_heads, position, tower.head_dim)
                ours = partial(_attention, run, ops, tower, lanes, items, position)
                run.take(place, kv, ours, nbytes=moved)
            theirs = partial(peers.attention, run.sweep, tower, lanes, items, position)
            run.take(place, SDPA, theirs, nbytes=4 * lanes * tower.kv_width * position)


def _attention(run: CardRun, ops: Cuda, tower: Tower, lanes: int, items: int, position: int) -> Timing:
    slots = position + items - 1
    each = lanes * ops.ring_bytes(tower.kv_heads, slots, tower.head_dim)
    copies = run.sweep.copies(each)
    run.need(copies * each)
    rings = [ops.ring(lanes, tower.kv_heads, slots, tower.head_dim) for _ in range(copies)]
    for ring in rings:
        fill(ops, ring, position)
    q = ops.zeros((lanes, items, tower.heads, tower.head_dim))
    probe.random(q, SEED, device=ops.device)
    out = ops.zeros((lanes, items, tower.heads, tower.head_dim))

    def work() -> None:
        for ring in rings:
            ops.attend(out, q, ring, position)

    return run.watch.recorded(ops, work) / copies


def fill(ops: Cuda, ring: Ring, position: int) -> None:
    """Random keys and values in every slot, and `position` positions behind every lane."""
    for n, array in enumerate((ring.k, ring.v, ring.k_scale, ring.v_scale)):
        if array is not None:
            probe.random(array, SEED + n, device=ops.device)
    ops.upload(np.full(ring.count.shape, position, np.int32), ring.count)
