"""Threads of the cpu backend: results do not know of them, and they come and go cleanly."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import mode

import numpy as np
import pytest

from tests.compare import assert_same
from tests.kernels.arrays import normal, weight, words

pytest.importorskip("numba")

from kernels.cpu import layout, team
from kernels.cpu.backend import Cpu

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60  # seconds until a process counts as stuck; it takes one or two

STEP = """
import sys
import numpy as np
from kernels import quant
from kernels.cpu.backend import Cpu

def plan(threads, rows=2048, columns=1024):
    ops, rng = Cpu(threads=threads), np.random.default_rng(0)
    down, up = (
        ops.adopt(quant.pack(rng.standard_normal(s, np.float32), "q4_0").reshape(-1), "q4_0", s)
        for s in ((rows, columns), (columns, rows))
    )
    x, gain = ops.upload(rng.standard_normal((1, columns), np.float32)), np.ones(columns, np.float32)
    y, z = ops.zeros((1, rows)), ops.zeros((1, columns))
    def step():
        for _ in range(3):
            ops.linear(y, x, down); ops.gelu(y, y); ops.linear(z, y, up)
            ops.add(x, x, z); ops.rms_norm(x, x, gain, 1e-5)
    return ops, ops.capture(step), x
"""


def python(code: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", STEP + code]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + err


def chain(threads: int, steps: int) -> np.ndarray:
    """The last state of a small model's steps: products wide enough to be shared, attention, small ops."""
    ops = Cpu(threads=threads)
    down, up = weight(ops, normal(2048, 1024), "q4_0")[0], weight(ops, normal(1024, 2048, seed=1), "q4_0")[0]
    x, y, z, gain = normal(1, 1024), ops.zeros((1, 2048)), ops.zeros((1, 1024)), np.ones(1024, np.float32)
    ring, k, on = ops.ring(1, 4, 32, 64), normal(1, 1, 4, 64, seed=2), words(1)
    mix = ops.zeros((1, 1, 16, 64))

    def step():
        ops.linear(y, x, down)
        ops.silu_mul(y, y, y)
        ops.linear(z, y, up)
        ops.add(x, x, z)
        ops.append(ring, k, k, on)
        ops.attend(mix, x.reshape(1, 1, 16, 64), ring, 20)
        ops.add(x, x, mix.reshape(1, 1024))
        ops.rms_norm(x, x, gain, 1e-5)

    replay = ops.capture(step)
    for _ in range(steps):
        replay()
    return x


def test_results_do_not_depend_on_the_number_of_threads():
    expected = chain(1, 200)
    for threads in (2, 3, 5):
        assert_same(chain(threads, 200), expected, what=f"{threads} threads")


def test_two_backends_in_two_threads_do_not_disturb_each_other():
    expected, got = chain(1, 150), []
    threads = [threading.Thread(target=lambda: got.append(chain(3, 150))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(got) == 2
    for state in got:
        assert_same(state, expected, what="side by side")


def test_two_threads_may_step_one_backend():
    ops = Cpu(threads=2)
    w = weight(ops, normal(4096, 1024), "q4_0")[0]
    xs, outs = [normal(1, 1024, seed=i) for i in range(2)], [ops.zeros((1, 4096)) for _ in range(2)]
    expected = [ops.zeros((1, 4096)) for _ in range(2)]
    for x, out in zip(xs, expected, strict=True):
        ops.linear(out, x, w)
    for _ in range(20):
        threads = [threading.Thread(target=ops.linear, args=(outs[i], xs[i], w)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    for i in range(2):
        assert_same(outs[i], expected[i], what=f"thread {i}")


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kernels-")]


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def busy(threads: int) -> tuple[Cpu, np.ndarray]:
    """A backend whose helpers have been hired, and what a product gave."""
    ops, out = Cpu(threads=threads), np.zeros((1, 8192), np.float32)
    ops.linear(out, normal(1, 1024), weight(ops, normal(8192, 1024), "q4_0")[0])
    return ops, out


def test_threads_begin_with_work_and_sleep_after_it():
    gc.collect()
    before = set(helpers())
    ops = Cpu(threads=3)
    assert set(helpers()) == before, "nothing to do yet"
    ops, _ = busy(3)
    assert len(set(helpers()) - before) == 2
    control, words_of_line = ops._team._control, layout.LINE_BYTES // 8
    asleep = control[layout.ASLEEP * words_of_line :: words_of_line]
    assert wait_until(lambda: all(asleep[:2])), "helpers sleep when nothing runs"


def test_a_closed_backend_still_works_alone():
    ops, out = busy(3)
    ops.close()
    ops.close()
    again = np.zeros_like(out)
    ops.linear(again, normal(1, 1024), weight(ops, normal(8192, 1024), "q4_0")[0])
    assert_same(again, out, what="after close")


def test_threads_end_with_their_backend():
    gc.collect()
    before = set(helpers())
    ops, _ = busy(4)
    mine = set(helpers()) - before
    assert len(mine) == 3
    del ops
    gc.collect()
    assert wait_until(lambda: not any(thread.is_alive() for thread in mine))


def test_a_process_ends_at_once_with_threads_asleep():
    code, said = ended(python("ops, replay, x = plan(4)\nfor _ in range(5): replay()\nprint('done')"))
    assert (code, said) == (0, "done\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_the_same():
    code, said = ended(
        python("""
import os, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads, which is the point here
ops, replay, x = plan(3)
start = x.copy(); replay(); first = x.copy()
x[...] = start
child = os.fork()
replay()
assert (x == first).all()
if child == 0:
    for _ in range(20): replay()
    print("child", flush=True); os._exit(0)
print("parent", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    )
    assert (code, said) == (0, "child\nparent 0\n")


def test_an_interrupt_during_a_step_ends_cleanly():
    process = python("""
ops, replay, x = plan(3, 4096, 4096)
print("begun", flush=True)
try:
    while True: replay()
except KeyboardInterrupt:
    start = x.copy(); replay(); again = x.copy()
    x[...] = start; replay()
    print("interrupted", bool((x == again).all()))
""")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "interrupted True\n")


def test_two_processes_with_more_threads_than_cores_both_finish():
    threads = 2 * (os.cpu_count() or 1)
    code = f"ops, replay, x = plan({threads})\nfor _ in range(100): replay()\nprint(x.sum())"
    both = [ended(process) for process in [python(code), python(code)]]
    assert both[0] == both[1]
    assert both[0][0] == 0


# --- how many


def drive(pace: team.Pace, seconds: dict[int, float], plans: int, *, spike: int = 0) -> list[int]:
    """The counts chosen over plans that take `seconds` by count; each `spike`-th takes a hundredfold."""
    chosen = []
    for i in range(plans):
        workers = pace.workers(1 << 24)
        slow = spike and i % spike == spike - 1
        pace.note(1 << 24, workers, seconds[workers] * (100 if slow else 1))
        chosen.append(workers)
    return chosen


def test_the_count_falls_when_cores_are_busy_and_rises_again():
    pace = team.Pace(8)
    quiet, busy_cores = {8: 1.0, 4: 1.5, 2: 2.5, 1: 5.0}, {8: 20.0, 4: 9.0, 2: 3.0, 1: 5.0}
    for seconds, best in ((quiet, 8), (busy_cores, 2), (quiet, 8)):
        assert mode(drive(pace, seconds, 1000)[-50:]) == best


def test_one_late_thread_does_not_change_the_count():
    chosen = drive(team.Pace(4), {4: 1.0, 2: 1.6, 1: 3.0}, 400, spike=7)
    assert chosen.count(4) > 350


def test_sizes_of_work_are_judged_apart():
    pace = team.Pace(2)
    for _ in range(100):
        for cost, seconds in ((1 << 20, {1: 1.0, 2: 2.0}), (1 << 28, {1: 2.0, 2: 1.0})):
            workers = pace.workers(cost)
            pace.note(cost, workers, seconds[workers])
    assert (pace.workers(1 << 20), pace.workers(1 << 28)) == (1, 2)


def test_cores_are_those_of_the_process():
    assert 1 <= team.cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, float("inf")),
        ({"a/b/cpu.max": "max 100000"}, float("inf")),
        ({"a/b/cpu.max": "250000 100000"}, 2.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "not a number"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
    ],
)
def test_a_control_groups_quota_counts(tmp_path, files, quota):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    membership = tmp_path / "membership"
    membership.write_text("12:cpu:/x\n0::/a/b\n")
    assert team._quota(tmp_path, membership) == quota
    assert team._quota(tmp_path / "absent", tmp_path / "absent") == float("inf")
