"""Execute the compiled kernels on the CPU, in the machine of tests/ptx, and print whether they are right.

    python -m bench.ptx                                # every case: minutes
    python -m bench.ptx --path split --rule gru        # some of them
    python -m bench.ptx --sensitivity                  # take each ordering out, one at a time: is it noticed?
    python -m bench.ptx --write                        # also to bench/results/ptx.csv or ptx-sensitivity.csv

Needs triton, whose output it executes, and no GPU. Errors are the largest difference from float64 relative to the
largest exact value. Instructions are those that one program's warps execute in a time step, by class. Exit status 1
if a result is wrong, if accesses to shared memory race, or, with --sensitivity, if a gap is found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton

from bench.measure.kept import kept_rows
from bench.measure.provenance import RESULTS, print_table, provenance, write_csv
from tests.ptx import sensitivity
from tests.ptx.cases import Case, Result, run
from tests.ptx.classes import CLASSES
from tests.ptx.memory import Fault
from tests.ptx.parse import Unsupported
from tests.ptx.selection import EVERY

Row = dict[str, object]


def rows_of(case: Case) -> list[Row]:
    """A row for each kernel of a case, or one that says what the machine refused."""
    shape: Row = {"case": str(case), "rule": case.rule, "dtype": case.dtype, "target": f"sm_{case.options.target}"}
    try:
        result = run(case)
    except (Fault, Unsupported) as fault:
        return [{**shape, **_figures(None), "fault": str(fault)}]
    return [{**shape, **_figures(result, kernel), "fault": ""} for kernel in result.instructions]


def _figures(result: Result | None, kernel: str = "") -> Row:
    names = [name for name, _ in CLASSES]
    if result is None:
        return dict.fromkeys(["kernel", "error", "limit", "races", "instructions", *names], "")
    backward = "backward" in kernel
    errors = [e for name, e in result.errors.items() if name.startswith("d_") == backward]
    counts, steps = result.instructions[kernel], result.program_steps[kernel]
    return {
        "kernel": kernel.removesuffix("_kernel"),
        "error": max(errors),
        "limit": result.limit,
        "races": len(result.races[kernel]),
        "instructions": round(sum(counts.values()) / steps),
        **{name: round(counts[name] / steps) for name in names},
    }


def wrong(row: Row) -> bool:
    """Whether a row is not what it should be."""
    return bool(row["fault"]) or bool(row["races"]) or float(str(row["error"])) > float(str(row["limit"]))


def sensitivity_rows(case: Case, sample: int) -> list[Row]:
    """How many orderings of each kernel and kind were noticed, and those that were not; one of so many is tried."""
    found = list(sensitivity.findings(case, every=sample))
    rows: list[Row] = []
    for kernel, kind in dict.fromkeys((f.kernel, f.mutation.kind) for f in found):
        these = [f for f in found if (f.kernel, f.mutation.kind) == (kernel, kind)]
        unseen = [f for f in these if not f.noticed]
        rows.append(
            {
                "case": str(case),
                "kernel": kernel.removesuffix("_kernel"),
                "taken out": kind,
                "places": len(these),
                "noticed": sum(f.noticed for f in these),
                "explained": sum(bool(f.reason) for f in unseen),
                "gaps": "; ".join(str(f.mutation.original) for f in unseen if f.gap),
                "reasons": "; ".join(dict.fromkeys(f.reason for f in unseen if f.reason)),
            }
        )
    return rows


def main() -> int:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", action="append", help="sequence, split or step")
    parser.add_argument("--rule", action="append")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--target", type=int, action="append")
    parser.add_argument("--every", type=int, default=1, help="one case of so many, drawn by chance but always the same")
    parser.add_argument("--sensitivity", action="store_true", help="take orderings out instead")
    parser.add_argument("--sample", type=int, default=1, help="with --sensitivity: one ordering of so many")
    parser.add_argument("--write", action="store_true", help="put the table into bench/results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    cases = [case for case in (sensitivity.CASES if options.sensitivity else EVERY) if _asked(case, options)]
    cases = random.Random(0).sample(cases, max(1, len(cases) // options.every)) if options.every > 1 else cases
    # Longest first, or the last one runs alone.
    cases.sort(key=lambda case: (case.path == "step", case.path == "split", case.B * case.H), reverse=True)
    work = partial(sensitivity_rows, sample=options.sample) if options.sensitivity else rows_of
    rows: list[Row] = []
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in pool.map(work, cases):
            rows += done
    print(f"triton {triton.__version__}, {len(cases)} cases; nothing here ran on a GPU")
    if not rows:
        print("no such case")
        return 1
    print_table(rows)
    if options.write:
        print(f"written to {_write('ptx-sensitivity' if options.sensitivity else 'ptx', rows)}")
    bad = [row for row in rows if (row["gaps"] if options.sensitivity else wrong(row))]
    for row in bad:
        print("NOT RIGHT:", *(f"{key} {value}" for key, value in row.items() if value not in ("", 0)))
    print(f"{len(bad)} of {len(rows)} rows are not right")
    return 1 if bad else 0


def _write(name: str, rows: Sequence[Row]) -> Path:
    """The rows of other Triton versions stay in the file, and those of cases that did not run."""
    ran, path = {row["case"] for row in rows}, RESULTS / f"{name}.csv"
    kept = [row for row in kept_rows(path) if row["triton"] != triton.__version__ or row["case"] not in ran]
    origin = provenance(torch.device("cpu"))
    return write_csv(name, [*kept, *({**row, **origin, "triton": triton.__version__} for row in rows)])


def _asked(case: Case, options: argparse.Namespace) -> bool:
    asked = {"path": case.path, "rule": case.rule, "dtype": case.dtype, "target": case.options.target}
    return all(not getattr(options, name) or value in getattr(options, name) for name, value in asked.items())


if __name__ == "__main__":
    sys.exit(main())
