"""The emulator: its words mean what CUDA's do, it refuses what a GPU would, and it catches planted faults."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kernels import BackendMissing, KernelError
from kernels.cuda.device import NULL, Device
from tests.compare import assert_close, assert_same
from tests.kernels.arrays import normal, words
from tests.kernels.emulator import build, faults
from tests.kernels.emulator.device import EmulatedDevice
from tests.kernels.emulator.launch import LaunchError

RTOL_MMA = 1e-6  # sums of 16 products in double, rounded once to f32, against float64
STOPPED, NAN, WRONG = "stopped", "NaN", "wrong values"
README = (build.HERE / "README.md").read_text(encoding="utf-8")

EVERYWHERE = {  # faults that the emulator itself stops, in any mode -> what it says
    "two_barriers_as_one": "threads of block .* meet in different places: .*faults.cu:",
    "divergent_barrier": "stuck: 0 of 64 threads returned, 33 wait in __syncthreads .* 31 wait in __syncwarp",
    "returned_lane": r"thread \(40, 0, 0\) .* returns, but is in the mask ffffffff",
    "lane_outside_its_mask": "a lane is not in the mask it gives",
    "shuffle_from_outside_the_mask": "reads a lane that is not in its mask",
    "mixed_collectives": "lanes of one warp .* __shfl_xor_sync .* __ballot_sync",
}
CAUGHT = {  # the others -> mode -> what shows
    "global_bounds": {"asan": "asan: heap-buffer-overflow"},
    "unwritten_memory": {"plain": NAN, "poison": NAN},
    "static_bounds": {"asan": "asan: global-buffer-overflow", "ubsan": "ubsan: index 64 out of bounds"},
    "dynamic_bounds": {"asan": "asan: use-after-poison"},
    "misaligned_load": {"ubsan": "ubsan: .*misaligned address"},
    "unwritten_static": {"poison": NAN},
    "unwritten_dynamic": {"poison": NAN},
    "missing_barrier": {"poison": NAN, "tsan": "tsan: data race"},
    "missing_second_barrier": {"plain": WRONG, "poison": WRONG, "tsan": "tsan: data race"},
    "shuffle_for_a_barrier": {"tsan": "tsan: data race"},
    "order_of_blocks": {"plain": WRONG, "poison": WRONG, "tsan": "tsan: data race"},
    "ticket_without_a_barrier": {"tsan": "tsan: data race"},
    "ticket_without_a_fence": {"tsan": "tsan: data race"},
}
HERE = [(mode, fault) for fault in CAUGHT for mode in ("plain", "poison") if mode in CAUGHT[fault]]
APART = [(mode, fault) for fault in CAUGHT for mode in faults.FINDINGS if mode in CAUGHT[fault]]


@pytest.fixture(scope="module")
def device() -> EmulatedDevice:
    try:
        return EmulatedDevice()
    except BackendMissing as reason:
        pytest.skip(str(reason))


def vocabulary(device: EmulatedDevice, name: str):
    return device.load((build.HERE / "vocabulary.cu").read_text(encoding="utf-8"), "vocabulary", name)


def apart(mode: str, fault: str, faulty: bool) -> str:
    try:
        return faults.found_in_a_process(mode, fault, faulty)
    except BackendMissing as reason:
        pytest.skip(str(reason))


# --- planted faults


def test_every_planted_fault_has_its_test():
    assert set(faults.faults()) == set(EVERYWHERE) | set(CAUGHT)


@pytest.mark.parametrize("fault", EVERYWHERE)
@pytest.mark.parametrize("mode", ["plain", "poison"])
def test_the_emulator_stops(device, mode, fault):
    assert re.search(f"^{STOPPED}: {fault}: .*{EVERYWHERE[fault]}", faults.found(mode, fault, True))


@pytest.mark.parametrize(("mode", "fault"), HERE)
def test_values_give_away(device, mode, fault):
    assert faults.found(mode, fault, True) == CAUGHT[fault][mode]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "fault"), APART)
def test_sanitizers_report(device, mode, fault):
    assert re.search(f"^{CAUGHT[fault][mode]}", apart(mode, fault, True))


@pytest.mark.parametrize("mode", ["plain", "poison"])
@pytest.mark.parametrize("fault", faults.faults())
def test_the_right_form_passes(device, mode, fault):
    assert faults.found(mode, fault, False) == ""


@pytest.mark.slow
@pytest.mark.parametrize("mode", faults.FINDINGS)
def test_the_right_forms_pass_under_a_sanitizer(device, mode):
    assert apart(mode, "all", False) == ""


def test_after_a_fault_the_next_launch_is_as_good_as_ever(device):
    for _ in range(2):
        assert faults.found("poison", "divergent_barrier", True).startswith(STOPPED)
        assert faults.found("poison", "missing_second_barrier", False) == ""


def test_the_readme_tells_what_was_verified():
    modes = ("plain", "poison", "asan", "ubsan", "tsan")
    told = {}
    for line in README.splitlines():
        fault, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        if fault in faults.faults():
            told[fault] = {mode for mode, cell in zip(modes, cells, strict=True) if cell != "–"}
    assert told == {fault: set(CAUGHT.get(fault, modes)) for fault in faults.faults()}


# --- launches


def launch(device: EmulatedDevice, *, grid=(1,), block=(64,), shared_mem: int = 0, **changed) -> None:
    """`many_kinds` as it should be launched, but for `changed`."""
    args = {
        "y": device.zeros((64,), np.float32), "x": device.zeros((64,), np.float16),
        "bits": device.zeros((64,), np.uint16), "vectors": device.zeros((4, 4), np.uint32),
        "n": np.int32(64), "f": np.float32(1), "wide": np.uint64(1),
    }  # fmt: skip
    args.update(changed)
    kernel = device.load(faults.SOURCE.read_text(encoding="utf-8"), "faults", "many_kinds")
    kernel(grid, block, tuple(args.values()), shared_mem=shared_mem)


def test_a_launch_takes_arrays_null_and_scalars_of_the_exact_width(device):
    launch(device)
    launch(device, bits=NULL, vectors=NULL, n=np.uint32(3), wide=np.int64(1))
    untyped = device.zeros((128,), np.uint8)  # bytes are anything
    launch(device, x=untyped, vectors=untyped)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"f": 1.0}, "argument 5: pass arrays and NumPy scalars, not float"),
        ({"f": np.float64(1)}, "argument 5: expected kind 'f' of 4 bytes, found float64"),
        ({"f": np.int32(1)}, "argument 5: expected kind 'f' of 4 bytes, found int32"),
        ({"n": 64}, "argument 4: pass arrays and NumPy scalars, not int"),
        ({"n": np.int64(64)}, "argument 4: expected kind 'i' of 4 bytes, found int64"),
        ({"wide": np.int32(1)}, "argument 6: expected kind 'i' of 8 bytes, found int32"),
        ({"n": words(64)}, "argument 4: an array of int32 for a scalar parameter"),
        ({"y": np.float32(1)}, "argument 0: a pointer takes an array or NULL"),
        ({"y": np.uintp(8)}, "argument 0: a pointer takes an array or NULL"),
        ({"y": None}, "argument 0: pass arrays and NumPy scalars, not NoneType"),
        ({"y": np.zeros(64, np.int32)}, "argument 0: an array of int32 for a pointer to 'f' of 4 bytes"),
        ({"x": np.zeros(64, np.float32)}, "argument 1: an array of float32 for a pointer to 'f' of 2 bytes"),
        ({"y": np.zeros(128, np.float32)[::2]}, r"argument 0: the array \(64,\) is not contiguous"),
        ({"vectors": np.zeros(64, np.uint8)[1:]}, "argument 3: address 0x[0-9a-f]+ is not a multiple of 16"),
        ({"more": np.int32(1)}, "takes 7 arguments, found 8"),
    ],
)
def test_a_launch_refuses_what_a_driver_would_misread(device, changed, said):
    with pytest.raises(LaunchError, match=f"^many_kinds: {said}"):
        launch(device, **changed)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"grid": (0,)}, "a grid has up to three sides"),
        ({"grid": (1, 65536)}, "a grid has up to three sides"),
        ({"grid": (1, 1, 1, 1)}, "a grid has up to three sides"),
        ({"grid": (1.0,)}, "a grid has up to three sides"),
        ({"block": (1025,)}, "a block has up to three sides"),
        ({"block": (1, 1, 65)}, "a block has up to three sides"),
        ({"block": (65,)}, "at most 64 threads in a block, found 65"),
        ({"shared_mem": 227 * 1024 + 1}, "232449 bytes of shared memory, but this device has 232448"),
        ({"shared_mem": -1}, "-1 bytes"),
    ],
)
def test_a_launch_refuses_shapes_past_the_limits(device, shape, said):
    with pytest.raises(LaunchError, match=f"^many_kinds: {said}"):
        launch(device, **shape)


def test_older_devices_have_less_shared_memory(device):
    turing = EmulatedDevice(capability=(7, 5))
    launch(turing, shared_mem=turing.shared_bytes)
    with pytest.raises(LaunchError, match="65537 bytes of shared memory, but this device has 65536"):
        launch(turing, shared_mem=turing.shared_bytes + 1)


def test_an_unknown_kernel_is_refused_with_the_known_names(device):
    with pytest.raises(KernelError, match=r"vocabulary.cu: no kernel is called 'haves'.*halves, product"):
        vocabulary(device, "haves")


# --- memory and recording


def test_the_device_has_every_verb_of_the_protocol(device):
    expected = [*Device.__annotations__, *(verb for verb in vars(Device) if not verb.startswith("_"))]
    assert len(expected) > 10
    assert [name for name in expected if not hasattr(device, name)] == []


def test_memory_never_written_is_nan_and_aligned(device):
    for shape, dtype in (((3, 5), np.float32), ((7,), np.float16), ((), np.float32)):
        array = device.empty(shape, dtype)
        assert array.shape == shape
        assert np.isnan(array).all()
        assert array.ctypes.data % 256 == 0
    assert device.empty((0, 4), np.int32).shape == (0, 4)


def test_recording_runs_nothing_and_replaying_runs_it_in_order(device):
    x, y = device.upload(words(1, 2)), device.upload(words(0, 0))

    def step() -> None:
        device.copy(x, out=y)
        device.clear(x)

    replay = device.record(step)
    assert_same(device.fetch(y).wait(), words(0, 0), what="before")
    replay()
    assert_same(device.fetch(y).wait(), words(1, 2), what="after")
    assert_same(device.fetch(x).wait(), words(0, 0), what="cleared")
    replay()
    assert_same(device.fetch(y).wait(), words(0, 0), what="again")


@pytest.mark.parametrize(
    "step",
    [
        lambda device: device.upload(words(1)),
        lambda device: device.upload(words(1), out=words(2)),
        lambda device: device.fetch(words(1)),
        lambda device: device.empty((1,), np.int32),
        lambda device: device.zeros((1,), np.int32),
        lambda device: device.copy(words(1)),
        lambda device: device.scratch("new", (1 << 12,), np.int32),
        lambda device: device.kernel("norm", "layer_norm"),
        lambda device: device.record(lambda: None),
    ],
    ids=["upload", "upload into", "fetch", "empty", "zeros", "copy", "scratch", "kernel", "record"],
)
def test_recording_refuses_what_a_capture_cannot_hold(device, step):
    fresh = EmulatedDevice()
    with pytest.raises(KernelError, match=r"^record: the step .* which a recorded step cannot"):
        fresh.record(lambda: step(fresh))
    fresh.upload(words(1))  # and is itself again


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f16", np.float16), ("bf16", np.uint16)])
def test_gemm_widens_its_operands(device, kind, dtype):
    x, w = (normal(*shape) for shape in ((3, 8), (5, 8)))
    if kind == "bf16":
        held = [(part.view(np.uint32) >> 16).astype(dtype) for part in (x, w)]
        x, w = ((part.astype(np.uint32) << 16).view(np.float32) for part in held)
    else:
        held = [part.astype(dtype) for part in (x, w)]
        x, w = (part.astype(np.float32) for part in held)
    out = device.empty((3, 5), np.float32)
    device.gemm(out, *(device.upload(part) for part in held), kind)
    assert_close(out, x @ w.T, rtol=1e-6, atol=1e-6, what=kind)


# --- words


def test_halves_round_as_numpy_does(device):
    bits = np.arange(1 << 16, dtype=np.uint16)
    random = np.random.default_rng(0).integers(0, 1 << 32, len(bits), np.uint32).view(np.float32)
    halves = bits.view(np.float16).astype(np.float32)
    ties = (halves.view(np.uint32) | 0x1000).view(np.float32)  # half-way to the next half
    near = normal(len(bits)) * np.float32(1e-4)
    wide, narrow = device.empty((len(bits),), np.float32), device.empty((len(bits),), np.uint16)
    for x in (random, halves, ties, near):
        kernel = vocabulary(device, "halves")
        kernel((256,), (256,), (wide, narrow, device.upload(bits), device.upload(x), np.int32(len(bits))))
        with np.errstate(over="ignore"):
            expected = x.astype(np.float16)
        numbers = ~np.isnan(x)
        assert_same(narrow[numbers], expected.view(np.uint16)[numbers], what="narrowed")
        assert np.isnan(narrow.view(np.float16)[~numbers]).all()
    numbers = ~np.isnan(halves)
    assert_same(wide[numbers], halves[numbers], what="widened")
    assert np.isnan(wide[~numbers]).all()


def test_the_tensor_core_twin_multiplies_matrices(device):
    a, b = normal(16, 16).astype(np.float16), normal(16, 8, seed=1).astype(np.float16)
    c = device.empty((16, 8), np.float32)
    vocabulary(device, "product")((1,), (32,), (c, device.upload(a), device.upload(b)))
    assert_close(c, a.astype(np.float64) @ b.astype(np.float64), rtol=RTOL_MMA, atol=RTOL_MMA, what="mma")


def test_words_of_a_warp_mean_what_cuda_says(device):
    random = np.random.default_rng(0)
    x, y = random.integers(-(2**31), 2**31, (2, 32)).astype(np.int32)
    x[:4] = 0, 1, -1, 0x4B000001
    lane = np.arange(32)
    a, b = x.view(np.uint32), y.view(np.uint32)
    octets, others = x.view(np.int8).reshape(32, 4).astype(int), y.view(np.int8).reshape(32, 4).astype(int)
    eight = np.concatenate([x.view(np.uint8).reshape(32, 4), y.view(np.uint8).reshape(32, 4)], axis=1)
    with np.errstate(invalid="ignore"):
        rounded = np.clip(np.nan_to_num(np.rint(x.view(np.float32).astype(float))), -(2.0**31), 2.0**31 - 1)
    expected = [
        7 + (octets * others).sum(-1),
        eight[:, [1, 3, 5, 7]].copy().view(np.int32)[:, 0],
        [int(word).bit_count() for word in a],
        [32 - int(word).bit_length() for word in a],
        [(int(word) & -int(word)).bit_length() for word in a],
        np.minimum(x, y), np.maximum(x, y), np.maximum(a, b).view(np.int32),
        np.full(32, x[5]), x[lane // 8 * 8 + 5],
        np.where(lane < 3, x, x[lane - 3]), np.where(lane > 28, x, x[(lane + 3) % 32]), x[lane ^ 12],
        np.full(32, sum(1 << int(at) for at in lane[x > 0])).astype(np.uint32).view(np.int32),
        np.zeros(32), np.ones(32), rounded,
    ]  # fmt: skip
    out = device.empty((len(expected), 32), np.int32)
    vocabulary(device, "words")((1,), (32,), (out, device.upload(x), device.upload(y)))
    for row, (got, want) in enumerate(zip(out, expected, strict=True)):
        assert_same(got, np.asarray(want).astype(np.int32), what=f"row {row} of words")


@pytest.mark.parametrize("seed", range(3))
def test_a_block_votes_and_draws_tickets(device, seed):
    drawn = EmulatedDevice(seed=seed)
    x, tickets, out = words(*range(-40, 56)), drawn.zeros((3,), np.uint32), drawn.empty((100,), np.int32)
    vocabulary(drawn, "votes")((1,), (96,), (out, drawn.upload(x), tickets))
    assert_same(out[:3], words(1, 0, 55), what="or, and, count")
    assert_same(np.sort(out[3:99]), words(*range(96)), what="tickets")
    assert_same(tickets, np.array([96, 95, 0], np.uint32), what="sum, largest, wrapped")
    assert out[99] == 0, "the ninety-sixth wraps"


@pytest.mark.parametrize("seed", range(3))
def test_threads_may_leave_while_the_others_go_on_to_meet(device, seed):
    out = device.empty((40,), np.int32)
    vocabulary(EmulatedDevice(seed=seed), "leaving")((1,), (40,), (out,))
    assert_same(out, words(*(sum(range(39, 39 - i, -1)) for i in range(40))), what="meetings")


@pytest.mark.parametrize(("grid", "block"), [((3,), (1,)), ((2, 3), (32, 2)), ((2, 3, 4), (4, 3, 2))])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_thread_of_a_grid_runs_once(device, seed, grid, block):
    drawn = EmulatedDevice(seed=seed)
    out = drawn.zeros((int(np.prod(grid) * np.prod(block)),), np.int32)
    vocabulary(drawn, "places")(grid, block, (out,))
    assert_same(out, np.ones_like(out), what="visits")


def test_seeds_draw_different_schedules(device):
    orders = []
    for seed in (0, 1, 2, 1):
        drawn = EmulatedDevice(seed=seed)
        tickets, out = drawn.zeros((3,), np.uint32), drawn.empty((100,), np.int32)
        vocabulary(drawn, "votes")((1,), (96,), (out, drawn.upload(np.zeros(96, np.int32)), tickets))
        orders.append(out[3:99].tolist())
    assert orders[0] != orders[1] != orders[2]
    assert orders[3] == orders[1], "and the same again"
