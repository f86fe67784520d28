"""Every case against every contender, timed by pytest-benchmark: `pytest bench --benchmark-json=FILE`.

In each round torch.nn (and the case's plain matmuls) run right before the contender, so that a ratio compares
neighbours in time. `python -m bench.report FILE` makes tables and pictures of the result.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases.case import Case
from bench.cases.contenders import as_auto
from bench.cases.model import Skipped
from bench.cases.task import Task, matmul_precision
from bench.measure.duel import complete, prepare, row
from bench.measure.timing import calls_per_measurement, clock, once

WARMUP = 2


@pytest.mark.benchmark(timer=clock)
def test_speed(case: Case, contender: str, device: torch.device, rounds: int, benchmark: BenchmarkFixture) -> None:
    with matmul_precision(case):
        try:
            if as_auto(Task(case, device), contender):
                pytest.skip(f"{contender}: what fastcells-auto runs, see there")
            duel = prepare(case, contender, device)
        except Skipped as reason:
            pytest.skip(f"{contender}: {reason}")
        inner = calls_per_measurement([duel.ours.run, duel.theirs.run])
        others: dict[str, list[float]] = {name: [] for name in duel.others}

        def time_the_others() -> None:
            for name, run in duel.others.items():
                others[name].append(once(run, inner))

        def ours() -> None:
            for _ in range(inner):
                duel.ours.run()

        benchmark.pedantic(ours, setup=time_the_others, rounds=rounds, warmup_rounds=WARMUP)
        samples = {name: times[-rounds:] for name, times in others.items()}
        assert benchmark.stats is not None, "pytest-benchmark is disabled"
        samples["ours"] = [seconds * 1e3 / inner for seconds in benchmark.stats.stats.data]
        (result,) = complete([row(duel, samples, inner)], device)
        benchmark.extra_info.update(result)
