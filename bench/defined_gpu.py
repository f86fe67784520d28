"""Defined cells on a GPU: their layers by generated kernels, beside a loop of torch's operators over their cell.

    python -m bench.defined_gpu      # writes defined-gpu.csv

Both are replayed as CUDA graphs, so that Python's part in the loop is left out; without one, it would be most of the
loop's time. Each cell's numbers are compared first. Twins of the built-in cells stand beside the kernels by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import torch

import fastcells
from bench.cases.case import GPU_FORMATS, Case
from bench.cases.loops import both_ways, cell_of, first, over_cell
from bench.cases.task import matmul_precision
from bench.measure.duel import Row
from bench.measure.guard import must_agree
from bench.measure.program import graphed
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.shares import add_options, compile_ahead
from bench.measure.timing import compare, ratio, summary
from fastcells import CannotRun, zoo
from tests.defined.cells import TwinGRU, TwinLSTM

CELLS = tuple(dict.fromkeys([TwinGRU, TwinLSTM, *(getattr(zoo, name) for name in zoo.__all__)]))
BY_HAND = {TwinGRU: fastcells.GRU, TwinLSTM: fastcells.LSTM}
TOLERANCE = {"bfloat16": 5e-2, "float32": 5e-3}
T, B, H = 128, 32, 256

Job = tuple[type, str, str, str]
JOBS: tuple[Job, ...] = tuple((c, i, *f) for c, f, i in product(CELLS, GPU_FORMATS, ("gluon", "triton")))


def time_cell(kind: type, impl: str, dtype: str, precision: str, rounds: int) -> Row:
    """One cell, forward and with the backward."""
    options = {"device": "cuda", "dtype": getattr(torch, dtype)}
    row: Row = {"cell": kind.__name__, "impl": impl, "T": T, "B": B, "H": H, "dtype": dtype, "precision": precision}
    torch.manual_seed(1)
    layer = kind(H, H, impl=impl, **options)
    cell = cell_of(layer).to(**options)
    x, d = torch.randn(T, B, H, **options), torch.randn(T, B, H, **options)
    with matmul_precision(Case("GRU", "forward", dtype=dtype, precision=precision)):
        try:
            path = fastcells.explain(layer, x).path
            ours, theirs = both_ways(layer, layer.parameters(), x, d), loop_both_ways(cell, x, d)()
        except CannotRun as reason:
            return {**row, "path": "", "verdict": f"declined: {str(reason)[:100]}"}
        must_agree(ours, theirs, TOLERANCE[dtype])
        row |= {"path": path, "verdict": "right"}
        forward = {"ours": no_grad(lambda: first(layer(x))), "loop": no_grad(lambda: over_cell(cell, x))}
        both = {"ours": lambda: both_ways(layer, layer.parameters(), x, d), "loop": loop_both_ways(cell, x, d)}
        if kind in BY_HAND:
            by_hand = BY_HAND[kind](H, H, impl=impl, **options)
            forward["by hand"] = no_grad(lambda: first(by_hand(x)))
            both["by hand"] = lambda: both_ways(by_hand, by_hand.parameters(), x, d)
        for mode, runs in (("forward", forward), ("both", both)):
            samples = compare({name: graphed(run, x.device) for name, run in runs.items()}, rounds=rounds)
            row |= {f"{mode}_ms": summary(samples["ours"]).median}
            row |= {f"{mode}_ratio": ratio(samples["loop"], samples["ours"])}
            row |= {f"{mode}_by_hand": ratio(samples["by hand"], samples["ours"]) if kind in BY_HAND else None}
    return row


def compile_all(share: int, shares: int) -> None:
    """A worker: every so many-th cell's kernels, into Triton's cache."""
    for kind, impl, dtype, precision in JOBS[share::shares]:
        options = {"device": "cuda", "dtype": getattr(torch, dtype)}
        x = torch.randn(2, B, H, **options)
        for one in (kind, BY_HAND.get(kind)):
            with matmul_precision(Case("GRU", "forward", dtype=dtype, precision=precision)), suppress(CannotRun):
                if one is not None:
                    first(one(H, H, impl=impl, **options)(x)).sum().backward()


def loop_both_ways(cell: torch.nn.Module, x: torch.Tensor, d: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    return lambda: both_ways(lambda given: over_cell(cell, given), cell.parameters(), x, d)


def no_grad(run: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(run)


def main() -> int:
    """Print the table and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="folder for defined-gpu.csv (default: bench/results)")
    add_options(parser)
    options = parser.parse_args()
    if options.share is not None:
        compile_all(options.share, options.jobs)
        return 0
    compile_ahead("bench.defined_gpu", options.jobs)
    rows = []
    for kind, impl, dtype, precision in JOBS:
        try:
            rows.append(time_cell(kind, impl, dtype, precision, options.rounds))
        except Exception as error:  # one cell's must not cost the others theirs
            print(f"{kind.__name__} {impl} {dtype}: {type(error).__name__}: {str(error)[:200]}")
    origin = provenance(torch.device("cuda"))
    print(origin_line(origin))
    print_table([row for row in rows if row["verdict"] == "right"])
    print(f"written to {write_csv('defined-gpu', rows, origin, options.out)}")
    return 1 if len(rows) < len(JOBS) else 0


if __name__ == "__main__":
    sys.exit(main())
