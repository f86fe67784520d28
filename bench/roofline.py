"""Print the model of a GPU's floor (bench.measure.roofline) as a table.

python -m bench.roofline                                  # over cells, dtypes and shapes
python -m bench.roofline --cell GRU --batch 32 --hidden 256 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import itertools
import sys

from bench.measure.families import fastest
from bench.measure.kept import kept_rows
from bench.measure.limit import GATES
from bench.measure.provenance import RESULTS, print_table
from bench.measure.roofline import DTYPES, EXCHANGES, Shape, floor, load_constants


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=tuple(GATES), action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--hidden", type=int, action="append")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append")
    options = parser.parse_args()
    constants, kept = load_constants(), kept_rows(RESULTS / "cycles.csv")
    rows: list[dict[str, object]] = []
    for cell, dtype, H, B in itertools.product(
        options.cell or ("GRU", "LSTM", "RNN"),
        options.dtype or ("bfloat16", "tf32"),
        options.hidden or (128, 256, 512, 1024),
        options.batch or (32, 128),
    ):
        row: dict[str, object] = {"cell": cell, "dtype": dtype, "B": B, "H": H}
        for name, backward in (("forward", False), ("backward", True)):
            shape = Shape(GATES[cell], B, H, dtype, backward)
            for exchange in EXCHANGES:
                microseconds, cut = floor(shape, exchange, constants)
                row[f"{name}_{exchange}_us"] = microseconds if cut else "does not fit"
            row[f"{name}_cut"] = str(cut or "")
            row[f"{name}_kernels_cycles"] = fastest(shape, kept)
        rows.append(row)
    print(f"Microseconds of one step of the recurrence, {constants.label}. No GPU was timed for this table.")
    print("kernels_cycles: what the model of bench.cycles gives our own kernels on sm_90, the fastest family first.")
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
