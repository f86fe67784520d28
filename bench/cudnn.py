"""What there is to beat: torch.nn on this device, microseconds per time step, and the kernels that cuDNN ran.

    python -m bench.cudnn                  # the lesson's shape first, then others, until --seconds are over
    python -m bench.cudnn --tiny           # a rehearsal: shapes that say nothing, on any device

A step's time is the slope between two T's. Kernel names come from torch's profiler and tell which of cuDNN's
algorithms ran; on a CPU the operators stand in for them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bench.cases.case import CELLS, Case
from bench.cases.contenders import torch_nn
from bench.cases.model import Skipped
from bench.cases.task import Task, matmul_precision
from bench.measure.duel import Row
from bench.measure.profile import kernels
from bench.measure.program import program
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import compare, summary

LENGTHS = (35, 140)
FORMATS = (("float32", "tf32"), ("bfloat16", ""), ("float16", ""), ("float32", "strict"))
MODES = ("forward", "forward+backward")
NAMES = 4  # kernels of a row, those that took most time


def cases(tiny: bool) -> Iterator[Case]:
    """The lesson's shape in every format and mode, then one batch and hidden size after the other."""
    sizes = [(2, 8)] if tiny else [(32, 256), *itertools.product((32, 1, 128, 8, 256), (128, 512, 1024, 64, 192, 768))]
    formats = FORMATS[:1] if tiny else FORMATS
    for (B, H), (dtype, precision), cell, mode in itertools.product(sizes, formats, CELLS, MODES):
        case = Case(cell, mode, B=B, I=H, H=H, dtype=dtype, precision=precision)
        yield case
        yield replace(case, graph=True)


def time_case(case: Case, device: torch.device, lengths: tuple[int, int], rounds: int) -> Row:
    """Time torch.nn at both lengths. Skipped where the device has no CUDA graphs."""
    runs = {}
    with matmul_precision(case):
        for T in lengths:
            task = Task(replace(case, T=T), device)
            made = program(task, torch_nn(task))
            runs[str(T)] = made.run
        samples = compare(runs, rounds=rounds)
        names = kernels(made.probe, device)
    short, long = (summary(samples[str(T)]).median for T in lengths)
    columns = ("cell", "mode", "dtype", "precision", "B", "I", "H", "graph")
    return {
        **{name: getattr(case, name) for name in columns},
        "T": f"{lengths[0]} and {lengths[1]}",
        "ms": long,
        "us_per_step": (long - short) * 1e3 / (lengths[1] - lengths[0]),
        "rounds": rounds,
        "kernels": " | ".join(names[:NAMES]),
    }


def main() -> int:
    """Print the table and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120, help="no new case after so long")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    parser.add_argument("--out", type=Path, help="folder for cudnn.csv (default: bench/results)")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[Row] = []
    left_out: list[str] = []
    start = time.monotonic()
    for case in cases(options.tiny):
        if time.monotonic() - start > options.seconds:
            left_out.append(f"{case}: out of time")
            continue
        try:
            rows.append(time_case(case, device, (2, 5) if options.tiny else LENGTHS, options.rounds))
        except Skipped as reason:
            left_out.append(f"{case}: {reason}")
    origin = provenance(device)
    path = write_csv("cudnn", rows, origin, options.out)
    print(origin_line(origin))
    print_table([{**row, "kernels": str(row["kernels"])[:90]} for row in rows])
    print(f"written to {path}, with whole kernel names; {len(left_out)} cases left out {left_out[:1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
