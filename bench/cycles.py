"""Model the cycles of every kernel's time step on one multiprocessor, from its machine code: modelled, not measured.

    python -m bench.cycles --quick               # a few rows of each kernel: under a minute on two cores
    python -m bench.cycles                       # every rule, dtype and plan row for sm_90
    python -m bench.cycles --rule gru --path split --hidden 256 --dtype bfloat16 --no-write
    python -m bench.cycles --quick --check       # fails where a row is 5 % slower than in bench/results/cycles.csv
    python -m bench.cycles --kept --triton DIR   # all that cycles.csv holds, also with the Triton installed in DIR
    python -m bench.cycles --assumptions         # all that the model takes for granted

Needs triton and no GPU. A row of the same kernel, shape, target and Triton version takes the place of the one in
bench/results/cycles.csv, others stay; each carries its own commit. --kept takes five minutes a Triton version on two
busy cores, one or two where the kernels have been compiled before. The model: bench/measure/multiprocessor.py.

cycles: of a time step; of the whole launch for the step kernels. chain: cycles of that from the last poll's result to
the first store that publishes the state or the gates' gradients, the sum where a cell has two of them a step (the
column exchanges). Instructions are those of one warp in that time. part "both": both directions in one launch.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from bench import compile as compiling
from bench.cases.compile_cases import DEVICES, DTYPES, Case, cases, gluon_cases
from bench.cases.rules import rule_named
from bench.measure import cycles, provenance, sass
from bench.measure.kept import Row, check, kept_rows, merged
from bench.measure.launched import compile_launch
from bench.measure.multiprocessor import ASSUMED, Assumptions
from fastcells.kernels.triton.rules import RULES

QUICK = (  # path, rule, dtype, H: a plan row of each, with the exchange that the plan takes
    ("sequence", "gru", "bfloat16", 64),
    ("step", "gru", "bfloat16", 256),
    ("split", "gru", "bfloat16", 256),
    ("split", "lstm", "bfloat16", 256),
    ("split", "gru_reset_before", "bfloat16", 256),
    ("split", "gru", "float32", 256),
    ("gluon", "gru", "bfloat16", 256),
    ("gluon", "lstm", "bfloat16", 256),
)
# Paths, dtypes and sizes that are kept beside the quick ones.
KEPT = ("split", "gluon"), ("bfloat16", "float32"), (256, 512)


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel, and what the model has to know of its launch."""

    name: str
    part: str  # what tells a case's launches of one kernel apart
    compiled: Any  # Triton's compiled kernel: its machine code in asm["cubin"]
    programs: int
    warps: int
    trips: tuple[int, ...] | None = None  # of the loops of a kernel without a loop over time, innermost first


@dataclass(frozen=True)
class Family:
    """Kernels that are written in one way: which cases there are, and what each case launches.

    Another one needs these two functions and its line in FAMILIES.
    """

    cases: Callable[[tuple[int, ...], tuple[str, ...]], Iterator[Case]]
    kernels: Callable[[Case], Iterator[Kernel]]


def launched(case: Case) -> Iterator[Kernel]:
    """What the launchers launch for a case, compiled."""
    for launch in compiling.recorded(case, rule_named(case.rule)):
        name, kernel, arguments, grid = launch
        trips, part = None, launch.part
        if case.path == "step":
            # Backward there is a loop over gates around the one over the inner dimension.
            trips = math.ceil(case.H / arguments["BLOCK_K"]), arguments.get("THROUGH", 1)
            part += {True: " later", False: " last", None: ""}[arguments.get("HAS_LATER")]
        compiled = compile_launch(kernel, arguments, case.target)
        yield Kernel(name.removesuffix("_kernel"), part, compiled, math.prod(grid), arguments["num_warps"], trips)


FAMILIES = {"triton": Family(cases, launched), "gluon": Family(gluon_cases, launched)}


def rows_of(job: tuple[str, Case], assumed: Assumptions = ASSUMED) -> list[Row]:
    """A row for each kernel of a case."""
    family, case = job
    return [
        {
            "family": family,
            "path": case.path,
            "kernel": kernel.name,
            "part": kernel.part,
            "rule": case.rule,
            "exchange": case.exchange,
            "dtype": case.dtype,
            "H": case.H,
            "B": case.B,
            "target": f"sm_{case.target}",
            **figures(kernel, assumed),
        }
        for kernel in FAMILIES[family].kernels(case)
    ]


def figures(kernel: Kernel, assumed: Assumptions) -> Row:
    """What the model and the compiler say of a kernel."""
    code = sass.decode(compiling.cuobjdump(kernel.compiled))
    if kernel.trips is None:
        found = cycles.time_step(code, kernel.warps, assumed)
    else:
        found = cycles.whole_launch(code, kernel.warps, kernel.trips, assumed)
    registers, spills = compiling.resources(kernel.compiled)
    return {
        "programs": kernel.programs,
        "warps": kernel.warps,
        "cycles_of": "step" if kernel.trips is None else "launch",
        "cycles": found.cycles,
        "chain": "" if found.chain is None else found.chain,
        "exchanges": found.exchanges,
        "instructions": found.instructions,
        **found.classes,
        "registers": registers,
        "spill_bytes": spills,
        "shared_bytes": kernel.compiled.metadata.shared,
        "unknown": " ".join(found.unknown),
        "source": cycles.NOTE,
    }


def chosen(options: argparse.Namespace) -> list[tuple[str, Case]]:
    """The jobs that the command line asks for: family and case."""
    jobs = []
    for name, family in FAMILIES.items():
        for case in family.cases(tuple(options.target or (90,)), tuple(options.dtype or DTYPES)):
            quick = (case.path, case.rule, case.dtype, case.H) in QUICK
            kept = case.path in KEPT[0] and case.dtype in KEPT[1] and case.H in KEPT[2][: 3 - case.directions]
            wanted = quick or (kept and not options.quick) or not (options.quick or options.kept)
            few = options.quick or options.kept  # leave out an exchange that no plan takes by itself
            asked = {"rule": case.rule, "path": case.path, "hidden": case.H, "exchange": case.exchange, "family": name}
            given = {option: getattr(options, option) for option in asked}
            if (
                wanted
                and not (few and case.exchange == "counter")
                and all(not given[option] or asked[option] in given[option] for option in asked)
            ):
                jobs.append((name, case))
    return jobs


def modelled(jobs: list[tuple[str, Case]], processes: int, assumed: Assumptions) -> tuple[list[Row], list[str]]:
    """The rows of all jobs, and the jobs that failed, with the reason."""
    rows: list[Row] = []
    failed = []
    with ProcessPoolExecutor(processes) as pool:
        for job, found in [(job, pool.submit(rows_of, job, assumed)) for job in jobs]:
            try:
                rows += found.result()
            except Exception as error:  # whatever Triton or ptxas say: the other rows are of use
                failed.append(f"{' '.join(map(str, vars(job[1]).values()))}: {type(error).__name__}: {error}")
    return rows, failed


def assumptions(given: Sequence[str]) -> Assumptions:
    """The model's, with NAME=VALUE in the place of some."""
    return replace(ASSUMED, **{name: int(value) for name, _, value in (text.partition("=") for text in given)})


def main() -> int:
    """Print the table and write or check it; exit status 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="a few rows of each kernel")
    parser.add_argument("--target", type=int, choices=tuple(DEVICES), action="append", help="90 if not given")
    parser.add_argument("--family", choices=tuple(FAMILIES), action="append")
    parser.add_argument("--rule", choices=tuple(RULES), action="append")
    parser.add_argument("--path", choices=("sequence", "split", "step", "gluon"), action="append")
    parser.add_argument("--hidden", type=int, action="append", metavar="H")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    parser.add_argument("--exchange", choices=("poll", "counter"), action="append")
    parser.add_argument("--kept", action="store_true", help="what bench/results/cycles.csv holds, and nothing else")
    parser.add_argument("--triton", action="append", default=[], metavar="DIR", help="also with the Triton in there")
    parser.add_argument("--check", action="store_true", help="compare with what is kept, and write nothing")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--results", type=Path, default=provenance.RESULTS, help="folder of cycles.csv")
    parser.add_argument("--assumptions", action="store_true", help="print what the model takes for granted")
    names = ", ".join(item.name for item in fields(Assumptions))
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=CYCLES", help=f"instead: {names}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    assumed = assumptions(options.assume)
    if options.assumptions:
        print(f"{cycles.NOTE}; taken for granted:", *assumed.lines(), sep="\n")
        return 0
    jobs = chosen(options)
    if not jobs:
        parser.error("no kernel is like that")
    rows, failed = modelled(jobs, options.jobs, assumed)
    status = 1 if failed else 0
    for line in failed:
        print(f"failed: {line}")
    origin = provenance.provenance(torch.device("cpu"))
    print(f"{cycles.NOTE}; triton {origin['triton']}, {len(jobs)} cases")
    if rows:
        provenance.print_table([{k: v for k, v in row.items() if k not in ("family", "source")} for row in rows])
        rows = [{**row, **origin} for row in rows]
        before = kept_rows(options.results / "cycles.csv")
        if options.check:
            status |= check(before, rows)
        elif not options.no_write and not options.assume:
            filters = options.target, options.family, options.rule, options.path, options.hidden, options.dtype
            all_rows = merged(before, rows, whole=options.kept and not failed and not any(filters))
            print(f"written to {provenance.write_csv('cycles', all_rows, folder=options.results)}")
    arguments = [word for word in sys.argv[1:] if word not in ("--triton", *options.triton)]
    for folder in options.triton:
        paths = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "bench.cycles", *arguments]
        status |= subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
