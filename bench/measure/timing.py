"""Time several contenders side by side, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

SHORTEST = 2.0  # milliseconds of one measurement, far above what clock and synchronization take
LONGEST = 100.0
MOST_CALLS = 200  # in one measurement


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and quartiles over `rounds` measurements."""

    median: float
    lower: float
    upper: float
    rounds: int


def clock() -> float:
    """Seconds, once every GPU has finished what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    inner: int | Mapping[str, int] = 1,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """Milliseconds a call of each contender, measured once a round, in turn; every other round backwards.

    inner: calls per measurement, for calls too short for the clock, of all or of each. rest: seconds before each
    measurement and a call that wakes its threads, so that those of the contender before, which spin for more work, take
    no core from it.
    """
    names = list(contenders)
    calls = dict.fromkeys(names, inner) if isinstance(inner, int) else inner
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        for name in names if index % 2 else names[::-1]:
            if rest:
                time.sleep(rest)
                contenders[name]()
            milliseconds = once(contenders[name], calls[name])
            if index >= warmup:
                samples[name].append(milliseconds)
    return samples


def once(run: Callable[[], object], inner: int = 1) -> float:
    """Milliseconds a call, over `inner` calls."""
    start = clock()
    for _ in range(inner):
        run()
    return (clock() - start) * 1e3 / inner


def calls_per_measurement(runs: Sequence[Callable[[], object]]) -> int:
    """How many calls of the fastest take SHORTEST, while those of the slowest do not take LONGEST."""
    times = [once(run) for run in runs]
    if min(times) < SHORTEST:  # the first call may have been slow for reasons of its own
        times = [min(once(run) for _ in range(3)) for run in runs]
    calls = min(SHORTEST / max(min(times), 1e-3), max(1.0, LONGEST / max(times)), MOST_CALLS)
    return max(1, round(calls))


def summary(samples: Sequence[float]) -> Timing:
    """Median and quartiles."""
    lower, median, upper = statistics.quantiles(samples, n=4)
    return Timing(median, lower, upper, len(samples))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median over rounds of slow's time over fast's in the same round: noise longer than a round cancels."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))
