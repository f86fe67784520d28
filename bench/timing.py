"""Time several contenders side by side, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and quartiles over `rounds` calls."""

    median: float
    lower: float
    upper: float
    rounds: int


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    inner: int = 1,
    synchronize: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Timing], Callable[[str, str], float]]:
    """Call each contender once a round, in turn, and time it.

    inner: calls per measurement, for calls too short for the clock. synchronize: waits for the device.
    Returns the timings, and a function `ratio(slow, fast)`: the median over rounds of slow's time over fast's in
    the same round, which noise that lasts longer than a round does not touch.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        order = names if index % 2 else names[::-1]
        for name in order:
            synchronize()
            start = time.perf_counter()
            for _ in range(inner):
                contenders[name]()
            synchronize()
            if index >= warmup:
                samples[name].append((time.perf_counter() - start) * 1e3 / inner)

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(s / f for s, f in zip(samples[slow], samples[fast], strict=True))

    return {name: _summary(samples[name]) for name in names}, ratio


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits until the device has finished; nothing on a CPU."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _summary(samples: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4)
    return Timing(median, lower, upper, len(samples))
