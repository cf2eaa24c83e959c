"""The card's verbs, each on a GPU where there is one, and on the host with `pretend_cupy` everywhere."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels import CompileError, DeviceLost, KernelError, OutOfMemory, ShapeError
from kernels.cuda import card as card_module
from kernels.cuda.card import STAGED_BYTES, Card
from kernels.cuda.device import NULL
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import normal, words
from tests.kernels.devices import CARD, opened
from tests.kernels.pretend_cupy import FACTS, ILLEGAL_ADDRESS, CUDARuntimeError, Gpu

RTOL_F32 = 1e-6  # norm-wise, f32 sums of 384 products against float64
RTOL_HALF = 5e-4  # the same for f16 and bf16 inputs; the stored values are exact, the sums are f32

TRIAL = r"""
extern "C" __global__ void increase(float* x, float by, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += by;
}
extern "C" __global__ void absent(int* out, const float* x) { out[0] = x == nullptr; }
extern "C" __global__ void through(float* out, const float* x, int n) {
    extern __shared__ float room[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) room[n - 1 - i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = room[i];
}
extern "C" __global__ void slow(float* x, long long clocks) {
    long long start = clock64();
    while (clock64() - start < clocks) {}
    x[0] += 1.0f;
}
"""
WRONG = """#line 3 "other.cu"
extern "C" __global__ void anything() { wrong(); }
"""
SOURCES = {"trial": TRIAL, "other": WRONG}


def increase(x: Any, by: np.float32, n: np.int32) -> None:
    x.reshape(-1)[:n] += by


def absent(out: Any, x: Any) -> None:
    out[0] = isinstance(x, np.uintp) and x == 0


def through(out: Any, x: Any, n: np.int32) -> None:
    out.reshape(-1)[:n] = x.reshape(-1)[:n][::-1]


def slow(x: Any, clocks: np.int64) -> None:
    x.reshape(-1)[0] += 1


HOST = {"increase": increase, "absent": absent, "through": through, "slow": slow}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Card, Gpu]]:
    """A card on a GPU of the host, and that GPU."""

    def make(**options: Any) -> tuple[Card, Gpu]:
        gpu = Gpu(kernels=HOST, **options)
        monkeypatch.setattr(card_module, "source", SOURCES.__getitem__)
        monkeypatch.setattr(card_module, "import_module", {"cupy": gpu}.__getitem__)
        return Card(0, FACTS), gpu

    return make


@pytest.fixture(params=["host", CARD])
def card(
    request: pytest.FixtureRequest, pretend: Callable[..., tuple[Card, Gpu]], monkeypatch: pytest.MonkeyPatch
) -> Card:
    if request.param == "host":
        return pretend()[0]
    monkeypatch.setattr(card_module, "source", SOURCES.__getitem__)
    return opened("card")


def floats(card: Card, *shape: int, seed: int = 0) -> Any:
    return card.upload(normal(*shape, seed=seed))


def read(card: Card, array: Any) -> np.ndarray:
    return card.fetch(array).wait()


def add_one(card: Card, x: Any) -> None:
    n = x.shape[0]
    card.kernel("trial", "increase")((-(-n // 128),), (128,), (x, np.float32(1), np.int32(n)))


def test_memory_comes_zeroed_or_empty_and_is_cleared(card):
    assert card.empty((2, 3), np.uint16).shape == (2, 3)
    held = card.zeros((3, 4), np.float32)
    assert_same(read(card, held), np.zeros((3, 4), np.float32), what="zeros")
    card.upload(normal(3, 4), held)
    card.clear(held[1:2])
    expected = normal(3, 4)
    expected[1] = 0
    assert_same(read(card, held), expected, what="row 1 cleared")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.float16, np.int32, np.float32])
def test_arrays_of_any_kind_and_order_go_up_and_come_back(card, dtype):
    array = (100 * normal(6, 4)).astype(dtype)
    for view in (array, array[::2], array.T, array[:0], np.array(7, dtype)):
        assert_same(read(card, card.upload(view)), view, what=f"{dtype.__name__} {view.shape}")


@pytest.mark.parametrize("rows", [5, STAGED_BYTES // 4096 + 1])
def test_an_uploaded_array_may_be_used_again_at_once(card, rows):
    array = normal(rows, 1024)
    held = [card.upload(array)]
    for _ in range(5):
        array += 1
        held.append(card.upload(array))
    array[:] = 0
    expected = normal(rows, 1024)
    for turn, one in enumerate(held):
        assert_same(read(card, one), expected, what=f"upload {turn}")
        expected += 1


def test_a_fetch_is_taken_as_of_now_and_keeps_what_it_took(card):
    x = card.zeros((1,), np.float32)
    taken = []
    for _ in range(20):
        card.kernel("trial", "slow")((1,), (1,), (x, np.int64(100_000)))
        taken.append(card.fetch(x))
    last = taken[-1].wait()
    assert all(pending.ready() for pending in taken), "one stream: what came before is there"
    assert [float(pending.wait()[0]) for pending in taken] == [*range(1, 21)] and last[0] == 20
    taken[0].wait()[0] = 99
    assert read(card, x)[0] == 20, "what was taken is the caller's own"


def test_a_copy_is_of_now_and_goes_where_it_is_told(card):
    x, out = floats(card, 3, 4), card.zeros((3, 4), np.float32)
    assert card.copy(x, out) is out
    apart = card.copy(x[1:])
    card.clear(x)
    assert_same(read(card, out), normal(3, 4), what="into out")
    assert_same(read(card, apart), normal(3, 4)[1:], what="of its own")
    with pytest.raises(ShapeError, match="copy"):
        card.copy(x, card.zeros((4, 3), np.float32))


def test_some_items_of_every_lane_are_copied_from_between_the_others(card):
    x, whole = floats(card, 3, 5, 4), normal(3, 5, 4)
    for items in (np.s_[:, 1:3], np.s_[:2, 4:], np.s_[:, :1], np.s_[:1, 2:]):
        assert_same(read(card, card.copy(x[items])), whole[items], what=f"{items}")
    out = card.zeros((3, 2, 4), np.float32)
    replay = card.record(lambda: card.copy(x[:, 3:], out))
    card.clear(x[:1])
    replay()
    whole[0] = 0
    assert_same(read(card, out), whole[:, 3:], what="recorded")
    with pytest.raises(ShapeError, match="copy: expected items that follow each other, found strides"):
        card.copy(x[:, :, 1:])


def test_scratch_starts_at_zero_and_stays_where_a_recording_knows_it(card):
    small = card.scratch("sums", (8,), np.float32)
    assert_same(read(card, small), np.zeros(8, np.float32), what="new")
    add_one(card, small)
    card.scratch("sums", (4096,), np.float32)
    assert_same(read(card, small), np.ones(8, np.float32), what="kept beside the larger one")


def test_a_kernel_takes_arrays_exact_scalars_and_null(card):
    x, flag = floats(card, 300), card.upload(words(-1))
    add_one(card, x)
    assert_same(read(card, x), normal(300) + np.float32(1), what="increased")
    for pointer, expected in ((NULL, 1), (x, 0)):
        card.kernel("trial", "absent")((1,), (1,), (flag, pointer))
        assert read(card, flag)[0] == expected
    assert card.kernel("trial", "absent") is card.kernel("trial", "absent")


def test_a_grid_without_blocks_launches_nothing(card):
    x = floats(card, 8)
    card.kernel("trial", "increase")((0, 1), (128,), (x, np.float32(1), np.int32(8)))
    assert_same(read(card, x), normal(8), what="untouched")


def test_a_block_may_ask_for_all_the_shared_memory_there_is(card):
    assert card.shared_bytes > 48 << 10
    for count in (16, card.shared_bytes // 4, 1024):
        x, out = floats(card, count), card.zeros((count,), np.float32)
        card.kernel("trial", "through")((1,), (256,), (out, x, np.int32(count)), shared_mem=4 * count)
        assert_same(read(card, out), normal(count)[::-1], what=f"{4 * count} bytes")
    with pytest.raises(KernelError, match=r"trial\.through"):
        args = (x, x, np.int32(1))
        card.kernel("trial", "through")((1,), (32,), args, shared_mem=card.shared_bytes + 4)
    assert_same(read(card, x), normal(1024), what="after a refusal the card goes on")


def test_a_replay_is_what_was_recorded_and_recording_runs_nothing(card):
    x, seen = floats(card, 100), card.zeros((100,), np.float32)

    def step() -> None:
        add_one(card, x)
        card.copy(x, seen)
        add_one(card, x)

    step()
    replay = card.record(step)
    del step
    gc.collect()
    assert_same(read(card, x), normal(100) + np.float32(1) + np.float32(1), what="before a replay")
    for _ in range(3):
        replay()
    once = floats(card, 100)
    for _ in range(8):
        add_one(card, once)
    assert_same(read(card, x), read(card, once), what="replayed and eager")
    assert_same(read(card, seen) + np.float32(1), read(card, x), what="the copy between")


def test_what_cannot_be_recorded_is_refused_and_leaves_the_card_usable(card):
    x = floats(card, 4)
    collects = gc.isenabled()
    with pytest.raises(KernelError, match="captur"):
        card.record(lambda: card.fetch(x))
    with pytest.raises(ZeroDivisionError):
        card.record(lambda: 1 // 0)
    assert gc.isenabled() == collects
    assert_same(read(card, x), normal(4), what="afterwards")
    replay = card.record(lambda: add_one(card, x))
    replay()
    assert_same(read(card, x), normal(4) + np.float32(1), what="recorded after refusals")


def test_free_memory_shrinks_by_what_is_taken(card):
    before = card.free_bytes()
    held = card.empty((1 << 22,), np.uint8)
    assert card.free_bytes() <= before - held.nbytes


def test_what_nobody_holds_is_given_back_and_what_is_held_stays(card):
    held = floats(card, 1000)
    card.empty((1 << 22,), np.uint8)
    card.trim()
    assert_same(read(card, held), normal(1000), what="held")


def test_too_much_memory_is_refused_with_the_figures_and_a_cure(card):
    with pytest.raises(OutOfMemory, match=r"cuda: [\d,]+\.\d MB asked for, .* MB of .* are free; .*kv: q8"):
        card.zeros((1 << 44,), np.uint8)
    assert_same(read(card, floats(card, 4)), normal(4), what="after a refusal the card goes on")


def test_a_kernel_that_does_not_build_names_file_line_and_fault(card):
    said = r'other\.cu does not build for .*: other\.cu\(3\): error: .*"wrong"'
    with pytest.raises(CompileError, match=said):
        card.kernel("other", "anything")


def test_trim_leaves_the_driver_all_that_is_free(pretend):
    card, gpu = pretend()
    assert card.free_bytes() == gpu.memory + 512
    card.trim()
    assert card.free_bytes() == gpu.memory


def test_pinned_memory_waits_for_its_copy_and_is_then_used_again(pretend):
    card, gpu = pretend()
    first = card.fetch(card.zeros((4,), np.float32))
    del first  # nobody will ask for it, but the copy is still under way
    held = card.upload(normal(4))
    assert len(gpu.pinned) == 2, "the first block is still being written to"
    kept = read(card, held)
    blocks = len(gpu.pinned)
    for seed in range(1, 50):
        read(card, card.upload(normal(4, seed=seed)))
    assert len(gpu.pinned) == blocks
    assert_same(kept, normal(4), what="what was fetched before its memory was used again")


def test_the_limit_of_shared_memory_is_raised_only_when_needed(pretend):
    card, gpu = pretend()
    x, kernel = floats(card, 4), card.kernel("trial", "through")
    for count in (100, 60 << 10, 50 << 10, 60 << 10, 70 << 10):
        kernel((1,), (32,), (x, x, np.int32(4)), shared_mem=count)
    assert gpu.raised == [60 << 10, 70 << 10]


def test_garbage_is_not_collected_while_recording(pretend):
    card, _ = pretend()
    seen: list[bool] = []
    card.record(lambda: seen.append(gc.isenabled()))
    assert seen == [False] and gc.isenabled()


def test_a_device_that_breaks_is_lost_in_every_later_call(pretend):
    card, gpu = pretend()
    x, kernel = floats(card, 4), card.kernel("trial", "increase")
    replay = card.record(lambda: add_one(card, x))
    pending = card.fetch(x)
    assert not pending.ready()
    gpu.broken = ILLEGAL_ADDRESS
    assert pending.ready(), "it will not come any more; whoever takes it is told why"
    calls: dict[str, Callable[[], object]] = {
        "fetching": pending.wait,
        "launching trial.increase": lambda: kernel((1,), (32,), (x, np.float32(1), np.int32(4))),
        "replaying": replay,
        "uploading": lambda: card.upload(normal(4), x),
        "clearing": lambda: card.clear(x),
        "taking memory": lambda: card.empty((1,), np.uint8),
        "giving memory back": card.trim,
    }
    for doing, call in calls.items():
        with pytest.raises(DeviceLost, match=f"noticed while {re.escape(doing)}: cudaErrorIllegalAddress"):
            call()


@pytest.mark.parametrize(("status", "kind"), [(3, OutOfMemory), (1, KernelError)])
def test_a_cublas_that_does_not_open_says_why_in_its_own_numbers(pretend, status, kind):
    card, gpu = pretend()

    def refuse() -> None:
        raise CUDARuntimeError(status)

    gpu.cuda.cublas = SimpleNamespace(create=refuse)
    x = floats(card, 2, 2)
    with pytest.raises(KernelError, match=r"multiplying \(2, 2\) by \(2, 2\)") as caught:
        card.gemm(x, x, x, "f32")
    assert type(caught.value) is kind


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "wide", "deep"), [(1, 7, 64), (65, 96, 384), (130, 33, 128)])
def test_products_of_every_kind_agree_with_float64(kind, rows, wide, deep):
    card = opened("card")
    x, w = (stored(normal(count, deep, seed=seed), kind) for count, seed in ((rows, 0), (wide, 1)))
    out, held = card.zeros((rows, wide), np.float32), [card.upload(one) for one, _ in (x, w)]
    card.gemm(out, *held, kind)
    expected = x[1].astype(np.float64) @ w[1].T.astype(np.float64)
    atol = (RTOL_F32 if kind == "f32" else RTOL_HALF) * float(np.abs(expected).max())
    eager = read(card, out)
    assert_close(eager, expected, rtol=0, atol=atol, what=f"{kind} {rows} x {wide} x {deep}")
    replay = card.record(lambda: card.gemm(out, *held, kind))
    card.clear(out)
    replay()
    assert_same(read(card, out), eager, what=f"{kind} recorded")


def stored(array: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """`array` as a device keeps it, and the f32 values that survive."""
    if kind == "bf16":
        bits = (array.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    kept = array.astype(np.float16 if kind == "f16" else np.float32)
    return kept, kept.astype(np.float32)


@pytest.mark.gpu
def test_the_device_times_what_it_does(monkeypatch):
    monkeypatch.setattr(card_module, "source", SOURCES.__getitem__)
    card = opened("card")
    x = card.zeros((1,), np.float32)
    kernel = card.kernel("trial", "slow")
    short, long = (
        card.timed(lambda clocks=clocks: kernel((1,), (1,), (x, np.int64(clocks))))
        for clocks in (100_000, 10_000_000)
    )
    assert 0 < short < long
