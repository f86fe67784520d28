"""`auto`, or any implementation by name, beside torch.nn on dense input: forward, and forward plus backward.

    python -m bench.layers                  # a short selection of shapes, and the cells
    python -m bench.layers --quick          # the lesson's shape only
    python -m bench.layers --full           # the grid: B, H and T, an hour or more on a CPU
    python -m bench.layers --again 0.95     # rows of the last table below that, in their places: noise or not?
    python -m bench.layers --require 0.95   # exit status 1 if a row is slower than that

Both sides have the same weights and input; outputs and gradients are compared before timing, to the bit where both run
the same operator on a CPU. `limit` is the speed-up if all but the matmuls took no time, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from bench.cases.case import CELLS, Case
from bench.cases.model import Skipped
from bench.measure.duel import Row, complete, measure
from bench.measure.pictures import grid
from bench.measure.provenance import RESULTS, origin_line, print_table, provenance, shown, write_csv
from bench.measure.results_file import case_of, key, number, read
from fastcells.dispatch import IMPLEMENTATIONS

MODES = ("forward", "forward+backward")
SHAPES = ((1, 1, 64), (35, 32, 256), (35, 1, 128), (8, 32, 64), (100, 8, 128))  # T, B, I = H
GRID = {"B": (1, 8, 32, 128), "H": (64, 128, 256, 512, 1024), "T": (1, 35, 256)}
COLUMNS = (
    *("cell", "mode", "T", "B", "H", "dtype", "path", "ms", "nn_ms", "ratio", "limit_ratio"),
    *("peak_mb", "nn_peak_mb", "resident_mb", "nn_resident_mb", "rounds"),
)


def quick() -> Iterator[Case]:
    """The shape of the lessons."""
    for cell, mode in itertools.product(CELLS, MODES):
        yield Case(cell, mode)


def short() -> Iterator[Case]:
    """A few shapes, and single steps of the cells."""
    for cell, (T, B, H), mode in itertools.product(CELLS, SHAPES, MODES):
        yield Case(cell, mode, T=T, B=B, I=H, H=H)
    for cell, B in itertools.product(CELLS, (1, 32)):
        yield Case(cell, "cell step", T=1, B=B, I=128, H=128)


def full() -> Iterator[Case]:
    """Every shape of the grid, small ones first."""
    for T, B, H, cell, mode in itertools.product(GRID["T"], GRID["B"], GRID["H"], CELLS, MODES):
        yield Case(cell, mode, T=T, B=B, I=H, H=H)


def main() -> int:
    """Print the table, write bench/results/layers-DEVICE[-DTYPE][-SUFFIX].csv and a picture of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto")
    parser.add_argument("--require", type=float, metavar="X", help="fail if a row is less than X times as fast")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    parser.add_argument("--suffix", default="", metavar="NAME", help="of the files, for a second machine of the kind")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="cases", action="store_const", const=quick)
    size.add_argument("--full", dest="cases", action="store_const", const=full)
    size.add_argument("--again", type=float, metavar="X", help="measure again what is below X in the last table")
    parser.set_defaults(cases=short)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = f"layers-{device.type}" + (f"-{options.impl}" if options.impl != "auto" else "")
    name += f"-{options.dtype}" if options.dtype != "float32" else ""
    name += f"-{options.suffix}" if options.suffix else ""
    last = read(RESULTS / f"{name}.csv") if options.again is not None else []
    if options.again is not None:
        below = [case_of(row) for row in last if number(row, "ratio") < options.again]
        options.cases = lambda: iter(below)
    rows: list[Row] = []
    try:
        for case in (replace(case, dtype=options.dtype) for case in options.cases()):
            try:
                rows.append(measure(case, f"fastcells-{options.impl}", device, options.rounds))
            except Skipped as reason:
                print(f"{case} left out: {reason}", flush=True)
            else:
                print(f"{case} {shown(rows[-1]['ratio'])}", flush=True)
    except KeyboardInterrupt:  # the grid takes long: what is there is worth keeping
        print("interrupted")
    print(origin_line(provenance(device)))
    if not rows:
        return 1
    print_table([{column: row[column] for column in COLUMNS} for row in rows])
    if not options.no_write:
        new = {key(row): row for row in complete(rows, device)}
        table = [new.pop(key(row), row) for row in last] + list(new.values())
        print(f"written to {write_csv(name, table)}")
        print(f"written to {grid(table, RESULTS / f'{name}.svg')}")
    slow = [row for row in rows if options.require is not None and float(str(row["ratio"])) < options.require]
    for row in slow:
        print(f"slower than {options.require}: {[row[column] for column in COLUMNS]}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
