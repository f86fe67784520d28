"""How many threads train: the idle cores, since a thread that waits for a busy core holds up all others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

STAT = Path("/proc/stat")
SAMPLE = 0.2  # seconds, at the start
EVERY = 10.0  # seconds between two looks during training


class Threads:
    """Sets torch's threads, and follows what other processes leave free. Never above what torch had.

    What is computed does not depend on their number (tests/charlm/test_threads.py).
    """

    def __init__(self, given: int | None) -> None:
        self.most = torch.get_num_threads()
        self.follows = given is None and self.most > 1 and _idle() is not None
        if given is not None:
            torch.set_num_threads(given)
        if self.follows:
            self.last = self._now()
            time.sleep(SAMPLE)
            self.look()

    def look_if_due(self) -> None:
        """Look again if it is time."""
        if self.follows and time.monotonic() - self.last[0] >= EVERY:
            self.look()

    def look(self) -> None:
        """Take the cores that are idle, and those that this process has already."""
        now = self._now()
        free = sum(now[1:]) - sum(self.last[1:])
        torch.set_num_threads(choice(free / (now[0] - self.last[0]), self.most))
        self.last = now

    def _now(self) -> tuple[float, float, float]:
        """The time, and seconds since some beginning: that this machine's cores were idle, and that we had one."""
        return time.monotonic(), _idle() or 0.0, time.process_time()


def choice(free: float, most: int) -> int:
    """Threads for so many free cores."""
    return max(1, min(most, round(free)))


def _idle() -> float | None:
    """Seconds that the cores which this process may use were idle; None where Linux does not tell."""
    try:
        mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
        rows = [line.split() for line in STAT.read_text().splitlines()]
    except (AttributeError, OSError):
        return None
    return sum(float(row[4]) + float(row[5]) for row in rows if row[0] in mine) / os.sysconf("SC_CLK_TCK")
