"""Teams follow what this process may use and what others leave; the barrier of a team sleeps, and wakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcells.backends.cpu import cores, native
from fastcells.backends.cpu.cores import Cores


class Machine:
    """Four cores, a clock, and what runs on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = self.idle = self.mine = 0.0
        self.allowed, self.quota = {0, 1, 2, 3}, float("inf")
        monkeypatch.setattr(cores, "allowed", lambda: self.allowed)
        monkeypatch.setattr(cores, "quota", lambda: self.quota)
        monkeypatch.setattr(cores, "idle", lambda mine: self.idle)
        monkeypatch.setattr(cores.time, "monotonic", lambda: self.time)
        monkeypatch.setattr(cores.time, "process_time", lambda: self.mine)

    def run(self, seconds: float, *, others: float, mine: float) -> None:
        self.time += seconds
        self.mine += seconds * mine
        self.idle += seconds * (4 - others - mine)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Cores:
    monkeypatch.setenv("FASTCELLS_FOLLOW", "1")
    return Cores()


@pytest.mark.parametrize(("free", "number"), [(0.0, 1), (0.4, 1), (1.4, 1), (1.6, 2), (4.0, 4)])
def test_threads(free: float, number: int) -> None:
    assert cores.threads(free) == number


def test_the_limit_follows_the_others(machine: Machine, seen: Cores) -> None:
    assert seen.limit() == 4, "nothing is known yet"
    machine.run(0.1, others=4.0, mine=0.0)
    assert seen.limit() == 4, "not every moment"
    machine.run(0.2, others=3.0, mine=1.0)
    assert seen.limit() == 1
    machine.run(1.1, others=1.0, mine=2.0)
    assert seen.limit() == 3, "what it has already counts as free"
    machine.run(1.1, others=0.0, mine=0.0)
    assert seen.limit() == 4


def test_affinity_and_quota(machine: Machine, seen: Cores) -> None:
    machine.quota = 2.3
    assert seen.limit() == 2
    machine.run(1.1, others=0.0, mine=1.0)
    assert seen.limit() == 2
    machine.allowed = {3}
    machine.run(1.1, others=0.0, mine=1.0)
    assert seen.limit() == 1
    machine.allowed, machine.quota = {0, 1, 2, 3}, 0.2
    machine.run(1.1, others=0.0, mine=1.0)
    assert seen.limit() == 1


def test_where_it_is_not_wanted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCELLS_FOLLOW", "0")
    machine.quota = 1.0
    assert Cores().limit() >= 256


def test_where_nothing_is_known(seen: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "allowed", lambda: None)
    assert seen.limit() >= 256 and seen.due == float("inf") and not seen.known()


def test_teams_are_limited(monkeypatch: pytest.MonkeyPatch, machine: Machine, seen: Cores) -> None:
    monkeypatch.setattr(native, "cores", seen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    work = 100 * native.WORK_OF_A_THREAD
    assert native._threads(work) == 4
    machine.run(1.1, others=2.0, mine=2.0)
    assert native._threads(work) == 2 and native._threads(1) == 1


CGROUPS = {
    "version 2": ("0::/box/inner\n", {"box/cpu.max": "150000 100000\n", "box/inner/cpu.max": "max 100000\n"}, 1.5),
    "version 2, its own root": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "version 1": (
        "5:devices:/\n4:cpu,cpuacct:/box\n0::/\n",
        {"cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, seen from inside": (
        "1:cpu:/docker/123\n",
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2.0,
    ),
    "no limit": (
        "1:cpu:/\n0::/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu.max": "max 100000\n"},
        float("inf"),
    ),
    "not what was expected": ("1:cpu:/\n0::/\n", {"cpu.max": "many\n", "cpu/cpu.cfs_quota_us": "\n"}, float("inf")),
    "none": ("", {}, float("inf")),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_control_groups(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, files, expected = CGROUPS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "self").write_text(said)
    monkeypatch.setattr(cores, "CGROUP", tmp_path / "self")
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    assert cores.quota() == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells")
def test_what_linux_says() -> None:
    mine = cores.allowed()
    assert mine is not None and os.sched_getaffinity(0) <= mine
    before = cores.idle(mine)
    assert before is not None and before > 0 and cores.idle(set()) == 0


PINNED = """
import os, sys, torch, fastcells
from fastcells.backends.cpu import native
cpu = min(os.sched_getaffinity(0))
for task in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(task), {cpu})
torch.set_num_threads(4)
print(native._threads(1 << 40))
x = torch.randn(35, 32, 64)
native.WORK_OF_A_THREAD = 1
layer = fastcells.GRU(64, 64, impl="cpu")
def run():
    return layer(x)[0]
one = run()
native.cores.follows = False
assert native._threads(1 << 40) == 4
for _ in range(20):  # four on one core: each barrier has to give it up
    assert torch.equal(run(), one)
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells")
@pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
def test_one_core_for_a_team() -> None:
    environment = {**os.environ, "FASTCELLS_FOLLOW": "1", "OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-c", PINNED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "1", done.stdout + done.stderr
