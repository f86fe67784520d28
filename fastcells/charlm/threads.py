"""How many threads train: the idle cores, since a thread that waits for a busy core holds up all others."""

from __future__ import annotations

import time

import torch

from fastcells.backends.cpu.cores import Cores, cores

SAMPLE = 0.2  # seconds, at the start
EVERY = 2.0  # seconds between two looks during training


class Threads:
    """Sets torch's threads, and follows what other processes leave free. Never above what torch had.

    What is computed does not depend on their number (tests/charlm/test_threads.py). A number that is given stays.
    """

    def __init__(self, given: int | None) -> None:
        self.most = torch.get_num_threads()
        self.cores = Cores(EVERY)
        self.follows = given is None and self.most > 1 and self.cores.known()
        if given is not None:
            torch.set_num_threads(given)
            cores.follows = False
        if self.follows:
            self.cores.look()
            time.sleep(SAMPLE)
            self.look()

    def look_if_due(self) -> None:
        """Look again if it is time."""
        if self.follows and time.monotonic() >= self.cores.due:
            self.look()

    def look(self) -> None:
        """Take the cores that are idle, and those that this process has already."""
        self.cores.look()
        torch.set_num_threads(min(self.cores.number, self.most))
