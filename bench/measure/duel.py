"""One contender against torch.nn on one case: checked first, then timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from bench.cases.case import Case
from bench.cases.contenders import contenders, torch_nn
from bench.cases.model import Model
from bench.cases.task import Task, matmul_precision
from bench.measure.guard import claims_own, must_agree, must_be, must_differ, tolerance
from bench.measure.limit import matmuls
from bench.measure.profile import operators, peak_memory
from bench.measure.program import Program, program
from bench.measure.provenance import provenance
from bench.measure.timing import calls_per_measurement, compare, once, ratio, summary
from fastcells.backends.base import Choice

Row = dict[str, object]
LONG = 200.0  # milliseconds, from where a case is measured less often
FEWEST = 5  # rounds of a case, however long it takes


@dataclass(frozen=True)
class Duel:
    """Both sides, proven to compute the same. limit: the case's matmuls alone, on a CPU."""

    case: Case
    contender: str
    device: torch.device
    choice: Choice | None
    ours: Program
    theirs: Program
    limit: Callable[[], None] | None

    @property
    def others(self) -> dict[str, Callable[[], object]]:
        """What is timed beside the contender in every round."""
        runs: dict[str, Callable[[], object]] = {"nn": self.theirs.run}
        return runs if self.limit is None else {**runs, "limit": self.limit}


def prepare(case: Case, contender: str, device: torch.device) -> Duel:
    """Build both sides, compare their numbers, and see that ours is not theirs under another name.

    Raises:
        Skipped: the contender cannot run the case here. GuardError: the comparison would mean nothing.
    """
    task = Task(case, device)
    model, baseline = contenders()[contender](task), torch_nn(task)
    ours, theirs = program(task, model), program(task, baseline)
    if model.choice is not None:
        _recognize(model, contender, case, ours)
    identical = model.choice is not None and model.choice.path == "aten" and device.type == "cpu"
    must_agree(ours.numbers(), theirs.numbers(), 0.0 if identical else tolerance(case))
    return Duel(case, contender, device, model.choice, ours, theirs, matmuls(case, device))


def _recognize(model: Model, contender: str, case: Case, ours: Program) -> None:
    """Raise GuardError if something else runs than the row says, or torch.nn's operator where it may not."""
    assert model.choice is not None
    guard = must_differ if claims_own(case, contender) else must_be
    guard(model.choice, operators(ours.probe))


def measure(case: Case, contender: str, device: torch.device, rounds: int) -> Row:
    """Prepare, time and weigh one duel: a row without its provenance. Raises as `prepare`.

    A case so long that its rounds would take over `rounds * LONG` gets fewer, FEWEST at least.
    """
    with matmul_precision(case):
        duel = prepare(case, contender, device)
        runs = {"ours": duel.ours.run, **duel.others}
        inner = calls_per_measurement([runs["ours"], runs["nn"]])
        fitting = int(rounds * LONG / once(runs["nn"])) if inner == 1 else rounds
        warmup = 1 if inner == 1 else 3  # what takes long has been warm since the numbers were compared
        samples = compare(runs, rounds=min(rounds, max(FEWEST, fitting)), warmup=warmup, inner=inner)
        return row(duel, samples, inner)


def row(duel: Duel, samples: Mapping[str, Sequence[float]], inner: int) -> Row:
    """A result: the case, who ran, milliseconds and megabytes. samples: milliseconds of ours, nn and limit."""
    ours, nn = summary(samples["ours"]), summary(samples["nn"])
    limit = summary(samples["limit"]).median if "limit" in samples else None
    repeat = 3 if max(ours.median, nn.median) < LONG else 1
    memory, nn_memory = (peak_memory(side.run, duel.device, repeat) for side in (duel.ours, duel.theirs))
    return {
        **asdict(duel.case),
        "contender": duel.contender,
        "path": "" if duel.choice is None else duel.choice.path,
        "ms": ours.median,
        "lower_ms": ours.lower,
        "upper_ms": ours.upper,
        "nn_ms": nn.median,
        "nn_lower_ms": nn.lower,
        "nn_upper_ms": nn.upper,
        "ratio": ratio(samples["nn"], samples["ours"]),
        "limit_ms": limit,
        "limit_ratio": None if limit is None else ratio(samples["nn"], samples["limit"]),
        # What a graph needs was taken when it was recorded.
        "peak_mb": None if duel.case.graph else memory.allocated,
        "nn_peak_mb": None if duel.case.graph else nn_memory.allocated,
        "resident_mb": memory.resident,
        "nn_resident_mb": nn_memory.resident,
        "rounds": ours.rounds,
        "inner": inner,
    }


def complete(rows: Sequence[Row], device: torch.device) -> list[Row]:
    """The rows, each with its provenance."""
    origin = provenance(device)
    return [{**r, **origin} for r in rows]
