"""Which blocks are fastest: every candidate of the Triton kernels, beside what plan.py chooses.

    python -m bench.tune                # until --seconds are over
    python -m bench.tune --tiny         # a rehearsal: one shape, two candidates, on any device

Forward plus backward at the lesson's shape, checked against torch.nn before it is timed. The best candidates are
figures to put into plan.py; nothing changes by itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.cases.case import CELLS, Case
from bench.cases.model import Skipped
from bench.cases.task import matmul_precision
from bench.measure.duel import Row, prepare
from bench.measure.guard import GuardError
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import compare, ratio, summary
from fastcells.kernels.triton import plan

SPACE = {
    "triton": {"batch": (16, 32), "warps": (4, 8, 16), "stages": (1, 2)},
    "triton-step": {"batch": (16, 32), "hidden": (16, 32, 64), "inner": (32, 64, 128), "warps": (4, 8)},
}
CHOOSERS = ("sequence_plan", "step_blocks")


def candidates(impl: str, tiny: bool) -> Iterator[dict[str, int]]:
    """Changes to what plan.py chooses; none first."""
    yield {}
    space = {"warps": (8,)} if tiny else SPACE[impl]
    for values in itertools.product(*space.values()):
        yield dict(zip(space, values, strict=True))


@contextmanager
def planned(change: dict[str, int]) -> Iterator[None]:
    """Every choice of plan.py, changed."""
    values: dict[str, Any] = dict(change)

    def changed(original: Any) -> Any:  # Any: the choosers differ, and what they take is theirs to know
        def choose(*args: object, **options: object) -> object:
            found = original(*args, **options)
            if isinstance(found, plan.Split):  # a grid that is too large then is refused by the cooperative launch
                return replace(found, blocks=replace(found.blocks, **values))
            return replace(found, **values) if isinstance(found, plan.Blocks) else found

        return choose

    if unknown := set(change) - {field.name for field in fields(plan.Blocks)}:
        raise ValueError(f"Blocks has no {', '.join(unknown)}")
    patches = [patch.object(plan, name, changed(getattr(plan, name))) for name in CHOOSERS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def time_candidate(case: Case, impl: str, change: dict[str, int], device: torch.device, rounds: int) -> Row:
    """One candidate's row; `verdict` says why there is no time. Compiles."""
    row: Row = {**{name: getattr(case, name) for name in ("cell", "T", "B", "H", "dtype", "precision")}, "impl": impl}
    row |= {"blocks": " ".join(f"{key}={value}" for key, value in change.items()) or "as planned"}
    try:
        with planned(change), matmul_precision(case):
            duel = prepare(case, f"fastcells-{impl}", device)
            samples = compare({"ours": duel.ours.run, "nn": duel.theirs.run}, rounds=rounds)
    except (Skipped, GuardError) as reason:
        return {**row, "ms": None, "ratio": None, "verdict": str(reason).splitlines()[0]}
    except Exception as error:  # the compiler refuses blocks that do not fit in ways of its own
        return {**row, "ms": None, "ratio": None, "verdict": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    return {**row, "ms": summary(samples["ours"]).median, "ratio": ratio(samples["nn"], samples["ours"]), "verdict": ""}


def main() -> int:
    """Print the best candidates and write all to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=180, help="no new candidate after so long")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    parser.add_argument("--out", type=Path, help="folder for tune.csv (default: bench/results)")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[Row] = []
    start = time.monotonic()
    formats = (("float32", "tf32"),) if options.tiny else (("float32", "tf32"), ("bfloat16", ""))
    hidden = (8,) if options.tiny else (128, 256, 64)
    for H, (dtype, precision), impl, cell in itertools.product(
        hidden, formats, SPACE, CELLS[:1] if options.tiny else CELLS
    ):
        case = Case(cell, "forward+backward", I=H, H=H, dtype=dtype, precision=precision)
        case = replace(case, T=2, B=2) if options.tiny else case
        for change in candidates(impl, options.tiny):
            if time.monotonic() - start < options.seconds:
                rows.append(time_candidate(case, impl, change, device, options.rounds))
    origin = provenance(device)
    path = write_csv("tune", rows, origin, options.out)
    print(origin_line(origin))
    print_table(best(rows) or rows)
    print(f"{len(rows)} candidates; all of them are in {path}")
    return 0


def best(rows: list[Row]) -> list[Row]:
    """For each kernel and shape what was planned, and the fastest."""
    chosen: list[Row] = []
    for _, group in itertools.groupby(rows, key=lambda row: (row["cell"], row["H"], row["dtype"], row["impl"])):
        timed = [row for row in group if row["ms"] is not None]
        if timed:
            fastest = min(timed, key=lambda row: float(str(row["ms"])))
            planned_row = [row for row in timed if row["blocks"] == "as planned"]
            chosen += [*planned_row, *([fastest] if fastest not in planned_row else [])]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
