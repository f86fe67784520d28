"""The learning rate over a run, as a share of `--lr`."""

from __future__ import annotations

import math

SCHEDULES = ("none", "cosine")


def share(schedule: str, warmup: int, step: int, total: int) -> float:
    """The share of the learning rate at `step` of `total`, counted from 0.

    During the first `warmup` steps it rises linearly to 1. Then "none" stays there, and "cosine" falls to 0 at the
    end of the run as half a cosine does (Loshchilov and Hutter 2017, equation 5, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "none":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
