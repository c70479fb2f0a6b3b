"""How many threads are used, and that the pool survives forks and callers that come at the same time."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest

from sterna import _native
from sterna.backends.native import NativeOpSet
from sterna.backends.native.threads import cpu_quota, default_threads, physical_cores


def test_siblings_count_as_one_core(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        directory = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores([0, 1, 2, 3], tmp_path) == 2
    assert physical_cores([0, 2], tmp_path) == 1
    assert physical_cores([0, 9], tmp_path) == 2


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, group: str, files: dict[str, str], quota: float | None) -> None:
    (tmp_path / "cgroup").write_text(group)
    for name, content in files.items():
        path = tmp_path / "fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert cpu_quota(tmp_path, tmp_path) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path) is None


def test_the_environment_sets_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_NUM_THREADS", "3")
    assert default_threads() == 3
    NativeOpSet()
    assert _native.num_threads() == 3
    with pytest.raises(ValueError, match="threads are 0, allowed is 1 to 1024"):
        _native.set_num_threads(0)


def product(ops: NativeOpSet) -> np.ndarray:
    rng = np.random.default_rng(0)
    weight = ops.pack_linear(rng.standard_normal((300, 200)).astype(np.float32))
    return ops.to_numpy(ops.linear(ops.tensor(rng.standard_normal((50, 200)).astype(np.float32)), weight))


def in_child(ops: NativeOpSet, expected: np.ndarray) -> None:
    if not np.array_equal(product(ops), expected):
        raise SystemExit(1)


def test_a_forked_child_starts_its_own_threads() -> None:
    ops = NativeOpSet(num_threads=2)
    expected = product(ops)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(ops, expected))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_callers_on_several_threads_get_the_same_bits() -> None:
    ops = NativeOpSet(num_threads=2)
    expected = product(ops)
    wrong = []

    def work() -> None:
        for _ in range(20):
            if not np.array_equal(product(ops), expected):
                wrong.append(1)

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_the_number_can_change_between_calls() -> None:
    ops = NativeOpSet(num_threads=1)
    expected = product(ops)
    for threads in (4, 2, 1, 3):
        _native.set_num_threads(threads)
        assert np.array_equal(product(ops), expected)
