"""Model the cycles of every kernel's time step on one multiprocessor, from its machine code: modelled, not measured.

    python -m bench.cycles --quick               # a few rows of each kernel: under a minute on two cores
    python -m bench.cycles                       # every rule, dtype and plan row for sm_90
    python -m bench.cycles --rule gru --path split --hidden 256 --dtype bfloat16 --no-write
    python -m bench.cycles --quick --check       # fails where a row is 5 % slower than in bench/results/cycles.csv
    python -m bench.cycles --assumptions         # all that the model takes for granted

Needs triton and no GPU. Rows of the same kernel, shape, target and Triton version replace those of
bench/results/cycles.csv, others stay; each row carries its own commit. The model: bench/measure/multiprocessor.py.

cycles: of a time step; of the whole launch for the step kernels. chain: cycles of that from the last poll's result to
the store that publishes the state or the gates' gradients. Instructions are those of one warp in that time.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import compile as compiling
from bench.cases.compile_cases import DEVICES, DTYPES, Case, cases
from bench.measure import cycles, provenance, sass
from bench.measure.multiprocessor import ASSUMED, Assumptions
from fastcells.kernels.triton.rules import RULES

Row = dict[str, object]
KEY = ("family", "path", "kernel", "part", "rule", "exchange", "dtype", "H", "B", "target", "triton")
SLOWER = 1.05  # times as many cycles as kept are a fault
QUICK = (  # path, rule, dtype, H: a plan row of each, with the exchange that the plan takes
    ("sequence", "gru", "bfloat16", 64),
    ("step", "gru", "bfloat16", 256),
    ("split", "gru", "bfloat16", 256),
    ("split", "lstm", "bfloat16", 256),
    ("split", "gru_reset_before", "bfloat16", 256),
    ("split", "gru", "float32", 256),
)


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


def triton_kernels(case: Case) -> Iterator[Kernel]:
    """What the launchers launch for a case, compiled."""
    for name, kernel, arguments, grid in compiling.recorded(case, RULES[case.rule]):
        trips = None
        part = str(arguments.get("PART", ""))
        if case.path == "step":
            # Backward there is a loop over gates around the one over the inner dimension.
            trips = math.ceil(case.H / arguments["BLOCK_K"]), arguments.get("THROUGH", 1)
            part += {True: " later", False: " last", None: ""}[arguments.get("HAS_LATER")]
        compiled = compiling.compile_launch(kernel, arguments, case.target)
        yield Kernel(name.removesuffix("_kernel"), part, compiled, math.prod(grid), arguments["num_warps"], trips)


FAMILIES = {"triton": Family(cases, triton_kernels)}


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
    code = sass.decode(compiling.cuobjdump(kernel.compiled, "-sass"))
    if kernel.trips is None:
        modelled = cycles.time_step(code, kernel.warps, assumed)
    else:
        modelled = cycles.whole_launch(code, kernel.warps, kernel.trips, assumed)
    registers, spills = compiling.resources(kernel.compiled)
    return {
        "programs": kernel.programs,
        "warps": kernel.warps,
        "of": "step" if kernel.trips is None else "launch",
        "cycles": modelled.cycles,
        "chain": "" if modelled.chain is None else modelled.chain,
        "exchanges": modelled.exchanges,
        "instructions": modelled.instructions,
        **modelled.classes,
        "registers": registers,
        "spill_bytes": spills,
        "shared_bytes": kernel.compiled.metadata.shared,
        "unknown": " ".join(modelled.unknown),
        "source": cycles.NOTE,
    }


def chosen(options: argparse.Namespace) -> list[tuple[str, Case]]:
    """The jobs that the command line asks for: family and case."""
    jobs = []
    for name, family in FAMILIES.items():
        for case in family.cases(tuple(options.target or (90,)), tuple(options.dtype or DTYPES)):
            quick = (case.path, case.rule, case.dtype, case.H) in QUICK and case.exchange != "counter"
            wanted = {"rule": case.rule, "path": case.path, "hidden": case.H, "exchange": case.exchange, "family": name}
            given = {option: getattr(options, option) for option in wanted}
            if (quick or not options.quick) and all(not given[key] or wanted[key] in given[key] for key in wanted):
                jobs.append((name, case))
    return jobs


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What a row is about, as text: equal for a row that has been through a file."""
    return tuple(str(row[name]) for name in KEY)


def kept_rows(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def merged(kept: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """All rows, new ones in the place of kept ones that are about the same; sorted by Triton version, then as cases."""
    replaced = {key_of(row) for row in new}
    columns = list(new[0])
    stay = [{name: row.get(name, "") for name in columns} for row in kept if key_of(row) not in replaced]
    order = [name for name in KEY if name != "triton"]
    return sorted(
        [*stay, *new],
        key=lambda row: ([int(n) for n in re.findall(r"\d+", str(row["triton"]))], [str(row[k]) for k in order]),
    )


def verdict(kept: Sequence[Row], new: Sequence[Row]) -> tuple[list[str], list[str]]:
    """What is slower than it was, by 5 % or more; and which rows have nothing kept to be compared with."""
    before = {key_of(row): row for row in kept}
    slower, missing = [], []
    for row in new:
        name = " ".join(str(row[key]) for key in KEY if row[key] != "")
        old = before.get(key_of(row))
        if old is None:
            missing.append(name)
        elif float(str(row["cycles"])) >= SLOWER * float(str(old["cycles"])):
            slower.append(f"{name}: {old['cycles']} cycles at {old['commit']}, now {row['cycles']} ({cycles.NOTE})")
    return slower, missing


def check(kept: Sequence[Row], new: Sequence[Row]) -> int:
    """Say what is slower; exit status 1 if anything is, or if nothing could be compared."""
    slower, missing = verdict(kept, new)
    for name in missing:
        print(f"not in bench/results/cycles.csv: {name}")
    for line in slower:
        print(f"slower: {line}")
    print(f"{len(slower)} of {len(new) - len(missing)} rows are slower by 5 % or more; {len(missing)} are not kept")
    return 1 if slower or len(missing) == len(new) else 0


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
    parser.add_argument("--path", choices=("sequence", "split", "step"), action="append")
    parser.add_argument("--hidden", type=int, action="append", metavar="H")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    parser.add_argument("--exchange", choices=("poll", "counter"), action="append")
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
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(partial(rows_of, assumed=assumed), jobs) for row in found]
    origin = provenance.provenance(torch.device("cpu"))
    print(f"{cycles.NOTE}; triton {origin['triton']}, {len(jobs)} cases")
    provenance.print_table([{k: v for k, v in row.items() if k not in ("family", "source")} for row in rows])
    rows = [{**row, **origin} for row in rows]
    kept = kept_rows(options.results / "cycles.csv")
    if options.check:
        return check(kept, rows)
    if not options.no_write and not options.assume:
        print(f"written to {provenance.write_csv('cycles', merged(kept, rows), folder=options.results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
