"""Every plan of the Gluon kernels that fits a shape: microseconds a step, beside the cycles that plan.py's model gives.

    python -m bench.plans --seconds 150   # writes plans.csv

A step's time is the slope between two T's, each replayed as a CUDA graph. What each plan computes is compared with what
the first one does. Compiling takes longest, so it runs in a process for each core first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from bench.measure.duel import Row
from bench.measure.guard import GuardError, must_agree
from bench.measure.program import graphed
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.shares import add_options, compile_ahead
from bench.measure.timing import compare, summary
from fastcells import spec
from fastcells.backends.base import ASKED_FOR, Choice, Inputs, PreviousStates, StepInput, Steps
from fastcells.backends.gluon.backend import GLUON, Plans
from fastcells.backends.triton.backend import gpu
from fastcells.kernels.gluon.plan import Resident, Shape, fitting_plans
from fastcells.spec import CellSpec, RecurrentWeights

CELLS = (spec.GRU_RESET_AFTER, spec.LSTM)
FORMATS = (torch.bfloat16, torch.float32)  # the latter with TF32
SHAPES = ((32, 256), (32, 512), (32, 128), (128, 256), (8, 256), (1, 256), (32, 1024))  # B, H
LENGTHS = (64, 320)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-3}  # of results in which sums have another order

Subject = tuple[CellSpec, torch.dtype, int, int, bool]  # cell, dtype, B, H, backward


def subjects() -> Iterator[Subject]:
    """What matters most first."""
    for (B, H), dtype, cell, backward in product(SHAPES, FORMATS, CELLS, (False, True)):
        yield cell, dtype, B, H, backward


def plans_of(subject: Subject, device: torch.device) -> list[Resident]:
    """Those that fit, what plan.py chooses first."""
    cell, dtype, B, H, backward = subject
    card = gpu(device)
    assert card is not None, "a GPU is needed"
    plans = fitting_plans(Shape(H, cell.num_gates, dtype.itemsize, "tf32", backward, 1), B, card)
    return [] if isinstance(plans, str) else plans


def made(subject: Subject, plan: Resident, T: int, device: torch.device) -> Callable[[], Sequence[Tensor]]:
    """One pass with this plan, on the same numbers whatever the plan is."""
    cell, dtype, B, H, backward = subject
    generator = torch.Generator(device).manual_seed(T)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    weights = RecurrentWeights(random(cell.num_gates * H, H) / H**0.5, random(cell.num_gates * H))
    state = tuple(random(B, H) for _ in cell.states)
    inputs = Inputs(StepInput(random(T, B, cell.num_gates * H)), state, weights, Steps())
    choice = Choice(GLUON.name, "resident", ASKED_FOR, Plans(plan, plan, "tf32", None), GLUON, str(plan))
    if not backward:
        return lambda: GLUON.forward(choice, cell, inputs, save=True)[0:1]
    first = plans_of((*subject[:-1], False), device)[0]
    choice = replace(choice, plan=Plans(first, plan, "tf32", None))
    trace = GLUON.forward(choice, cell, inputs, save=True)
    previous = PreviousStates(trace.hidden, state[0], inputs.steps)
    d, d_last = random(T, B, H), tuple(random(B, H) for _ in cell.states)
    return lambda: GLUON.backward(choice, cell, inputs, trace, previous, d, d_last)[0:1]


def measure(subject: Subject, device: torch.device, rounds: int) -> Iterator[Row]:
    """A row for each plan, in the model's order."""
    cell, dtype, B, H, backward = subject
    plans = plans_of(subject, device)
    runs: dict[str, Callable[[], object]] = {}
    truth: Sequence[Tensor] = ()
    wrong: dict[Resident, str] = {}
    for plan in plans:
        try:
            numbers = made(subject, plan, LENGTHS[0], device)()
            truth = truth or numbers
            must_agree(numbers, truth, TOLERANCE[dtype])
            for T in LENGTHS:
                runs[f"{plan} {T}"] = graphed(made(subject, plan, T, device), device)
        except (GuardError, RuntimeError) as error:
            wrong[plan] = f"{type(error).__name__}: {str(error)[:100]}"
    samples = compare(runs, rounds=rounds)
    for place, plan in enumerate(plans):
        row: Row = {"cell": cell.name, "pass": "backward" if backward else "forward", "dtype": str(dtype)[6:]}
        row |= {"B": B, "H": H, "plan": str(plan), "place": place, "model_cycles": plan.cycles}
        if plan in wrong:
            yield {**row, "us_per_step": None, "verdict": wrong[plan]}
            continue
        short, long = (summary(samples[f"{plan} {T}"]).median for T in LENGTHS)
        yield {**row, "us_per_step": (long - short) * 1e3 / (LENGTHS[1] - LENGTHS[0]), "verdict": "right"}


def compile_all(share: int, shares: int, device: torch.device) -> None:
    """A worker: every so many-th plan, into Triton's cache."""
    everything = [(subject, plan) for subject in subjects() for plan in plans_of(subject, device)]
    for subject, plan in everything[share::shares]:
        try:
            made(subject, plan, 2, device)()
        except RuntimeError as error:  # who measures it will say so
            print(f"{subject} {plan}: {error}", file=sys.stderr)


def main() -> int:
    """Print what plan.py chooses beside the fastest, and write all to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=150, help="no new shape after so long; compiling has a half")
    parser.add_argument("--out", type=Path, help="folder for plans.csv (default: bench/results)")
    add_options(parser)
    options = parser.parse_args()
    device = torch.device("cuda")
    if options.share is not None:
        compile_all(options.share, options.jobs, device)
        return 0
    end = time.monotonic() + options.seconds
    compile_ahead("bench.plans", options.jobs, options.seconds / 2)
    rows: list[Row] = []
    for subject in subjects():
        if time.monotonic() < end:
            rows += measure(subject, device, options.rounds)
    origin = provenance(device)
    print(origin_line(origin))
    print_table(best(rows))
    print(f"{len(rows)} plans; all of them are in {write_csv('plans', rows, origin, options.out)}")
    return 1 if any(row["verdict"] != "right" for row in rows) else 0


def best(rows: Sequence[Row]) -> list[Row]:
    """For each shape the plan that is chosen, beside the fastest."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["us_per_step"] is not None:
            groups.setdefault(tuple(row[name] for name in ("cell", "pass", "dtype", "B", "H")), []).append(row)
    chosen = []
    for group in groups.values():
        first, fastest = group[0], min(group, key=lambda row: float(str(row["us_per_step"])))
        columns = {name: first[name] for name in ("cell", "pass", "dtype", "B", "H", "plan", "us_per_step")}
        columns |= {"fastest": fastest["plan"], "fastest_us": fastest["us_per_step"]}
        chosen.append({**columns, "gain": float(str(first["us_per_step"])) / float(str(fastest["us_per_step"]))})
    return chosen


if __name__ == "__main__":
    sys.exit(main())
