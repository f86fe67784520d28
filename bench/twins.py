"""Compile the kernels with rules that are derived of definitions beside those with rules written by hand.

    python -m bench.twins                       # GRU, LSTM, RNN, on each path, in bfloat16 and float32: minutes
    python -m bench.twins --rule gru --path split
    python -m bench.twins --write               # also to bench/results/twins.csv

Needs triton and no GPU. Instructions are those of one warp in a time step, from the machine code for sm_90, and cycles
are modelled: see bench.cycles. Exit status 1 if a derived rule has more than 1.1 times the instructions.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import torch
import triton

from bench.cases.compile_cases import Case
from bench.cases.rules import TWINS
from bench.cycles import rows_of
from bench.measure.provenance import print_table, provenance, write_csv

Row = dict[str, object]
MOST = 1.1  # times the instructions of the rule by hand
SIZES = {"sequence": {"bfloat16": 128, "float32": 64}, "split": {}, "step": {}, "gluon": {}}  # H, 256 where none
FIGURES = ("instructions", "cycles", "registers", "spill_bytes")


def case_of(path: str, rule: str, dtype: str) -> Case:
    """The rule written by hand."""
    H = SIZES[path].get(dtype, 256)
    return Case(path, rule, dtype, H, 90, exchange="poll" if path == "split" else "")


def compared(case: Case) -> list[Row]:
    """A row for each kernel: by hand, derived, and the quotient of the instructions."""
    family = "gluon" if case.path == "gluon" else "triton"
    both = [rows_of((family, each)) for each in (case, replace(case, rule=TWINS[case.rule]))]
    rows = []
    for by_hand, derived in zip(*both, strict=True):
        row: Row = {name: by_hand[name] for name in ("kernel", "part", "rule", "dtype", "H", "target")}
        for name in FIGURES:
            row |= {name: by_hand[name], f"{name}_derived": derived[name]}
        row["quotient"] = round(int(str(derived["instructions"])) / int(str(by_hand["instructions"])), 3)
        rows.append(row)
    return rows


def main() -> int:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", choices=tuple(SIZES), action="append")
    parser.add_argument("--rule", choices=tuple(TWINS), action="append")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), action="append")
    parser.add_argument("--write", action="store_true", help="put the table into bench/results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    cases = [
        case_of(path, rule, dtype)
        for path in options.path or SIZES
        for rule in options.rule or TWINS
        for dtype in options.dtype or ("bfloat16", "float32")
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(compared, cases) for row in found]
    print(f"triton {triton.__version__}, nothing here ran on a GPU")
    print_table(rows)
    if options.write:
        print(f"written to {write_csv('twins', rows, provenance(torch.device('cpu')))}")
    more = [row for row in rows if float(str(row["quotient"])) > MOST]
    print(f"{len(more)} of {len(rows)} derived kernels have more than {MOST} times the instructions")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
