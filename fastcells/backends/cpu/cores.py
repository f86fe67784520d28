"""How many cores are there for this process: what it may use, less what others do.

A thread that waits for a busy core holds up all others of its team, so that beside other processes two threads can be
several times as slow as one. What is computed does not depend on their number.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path, PurePosixPath

STAT, TASKS, CGROUP = Path("/proc/stat"), Path("/proc/self/task"), Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
FIRST = 0.2  # seconds between the first two looks


class Cores:
    """Looks now and then at what this process may use and what others leave of it.

    every: seconds between two looks. follows: whether there is a limit at all; FASTCELLS_FOLLOW=0 in the environment
    says no.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self.follows = os.environ.get("FASTCELLS_FOLLOW", "1") != "0"
        self.due = 0.0
        self.number = 1 << 30
        self.last: tuple[float, float, set[int]] | None = None
        self.lock = threading.Lock()

    def limit(self) -> int:
        """The most threads that make sense now."""
        if not self.follows:
            return 1 << 30
        # Without waiting for a lock that a fork, or what a signal interrupted, may hold.
        if time.monotonic() >= self.due and self.lock.acquire(blocking=False):
            try:
                self.look()
            finally:
                self.lock.release()
        return self.number

    def known(self) -> bool:
        """Whether anything can be seen here."""
        mine = allowed()
        return mine is not None and idle(mine) is not None

    def look(self) -> None:
        """Take the cores that are idle, and those that this process has already."""
        now = time.monotonic()
        self.due = now + (FIRST if self.last is None else self.every)
        mine = allowed()
        if mine is None:
            self.due = float("inf")  # no Linux: nothing is known, now or later
            return
        most = min(float(len(mine)), quota())
        unused = idle(mine)
        # Of what this process may use, all is free at the first look, for all that is known.
        if unused is not None:
            had = unused + time.process_time()
            if self.last is not None and now > self.last[0] and mine == self.last[2]:
                most = min(most, (had - self.last[1]) / (now - self.last[0]))
            self.last = now, had, mine
        self.number = threads(most)


def threads(free: float) -> int:
    """For so many free cores."""
    return max(1, round(free))


def allowed() -> set[int] | None:
    """The cores that some thread of this process may use; None where Linux does not tell.

    OpenMP may have bound each to one of its own.
    """
    try:
        found = set(os.sched_getaffinity(0))
        for task in os.listdir(TASKS):
            try:
                found |= os.sched_getaffinity(int(task))
            except OSError:  # it has ended
                continue
        return found
    except (AttributeError, OSError):
        return None


def idle(cores: set[int]) -> float | None:
    """Seconds since some beginning that these cores were idle; None where Linux does not tell."""
    names = {f"cpu{i}" for i in cores}
    try:
        rows = [line.split() for line in STAT.read_text().splitlines()]
        return sum(float(row[4]) + float(row[5]) for row in rows if row[0] in names) / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError):
        return None


def quota() -> float:
    """The cores' worth of time that this process's control groups, version 1 or 2, allow it; infinite without any."""
    try:
        lines = [line.split(":", 2) for line in CGROUP.read_text().splitlines()]
    except OSError:
        return float("inf")
    least = float("inf")
    for _, controllers, path in lines:
        if controllers == "":
            roots = [GROUPS, GROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [GROUPS / controllers, GROUPS / "cpu"]
        else:
            continue
        # A group is limited by those around it too; a container may see its own as the root.
        inner = PurePosixPath(path.lstrip("/"))
        for root in roots:
            for folder in (inner, *inner.parents):
                least = min(least, _limit(root / folder))
    return least


def _limit(group: Path) -> float:
    """A group's own."""
    for read in (_version_2, _version_1):
        try:
            allowed, period = read(group)
            if allowed > 0 and period > 0:
                return allowed / period
        except (OSError, ValueError):  # no such file, "max", or not what was expected
            continue
    return float("inf")


def _version_2(group: Path) -> tuple[float, float]:
    allowed, period = (group / "cpu.max").read_text().split()
    return float(allowed), float(period)


def _version_1(group: Path) -> tuple[float, float]:
    allowed, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return float(allowed), float(period)  # -1: no limit


cores = Cores()
