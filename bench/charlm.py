"""One training step of the character language model: token ids here, `nn.*` on explicit one-hots there.

    python -m bench.charlm                 # the lesson's shape: T=35, B=32, V=1027, H=256
    python -m bench.charlm --require 1.5   # exit status 1 if a GRU step is less than 1.5 times as fast
    python -m bench.charlm --share 0.5     # the same if it has less than half of the limit, which machines differ in

A step is: (one-hot,) recurrent layer, linear layer, cross-entropy, backward, fused Adam. Both sides start from the same
weights; before timing, their losses and all gradients are compared. `limit` is the speed-up if all but the matmuls
took no time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch

from bench.cases.case import CELLS, lesson
from bench.cases.model import Skipped
from bench.measure.duel import Row, measure
from bench.measure.provenance import origin_line, print_table, provenance
from fastcells.dispatch import IMPLEMENTATIONS

COLUMNS = ("cell", "path", "T", "B", "I", "H", "dtype", "ms", "nn_ms", "ratio", "limit_ratio", "rounds")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto")
    parser.add_argument("--require", type=float, metavar="X", help="fail if a GRU step is less than X times as fast")
    parser.add_argument("--share", type=float, metavar="X", help="fail if a GRU step has less than X of the limit")
    for name, value in (("steps", 35), ("batch", 32), ("vocabulary", 1027), ("hidden", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[Row] = []
    for cell in CELLS:
        case = replace(lesson(cell), T=options.steps, B=options.batch, I=options.vocabulary, H=options.hidden)
        try:
            rows.append(measure(case, f"fastcells-{options.impl}", device, options.rounds))
        except Skipped as reason:
            print(f"{cell} left out: {reason}")
    print(origin_line(provenance(device)))
    if not rows:
        return 1
    print_table([{column: row[column] for column in COLUMNS} for row in rows])
    gru = next((row for row in rows if row["cell"] == "GRU"), None)
    speedup, limit = (float(str(gru[key])) for key in ("ratio", "limit_ratio")) if gru else (0.0, 1.0)
    required = max(options.require or 0.0, (options.share or 0.0) * limit)
    if speedup < required:
        print(f"the GRU step is {speedup:.2f} times as fast, and {required:.2f} was required", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
