"""Memory of training on a CPU: fastcells beside torch.nn, each in a process of its own, by what the system handed out.

    python -m bench.memory                  # the table, a few minutes
    python -m bench.memory --quick          # T=35, H=256
    python -m bench.memory --require 1.1    # exit status 1 if a figure is more than that times torch.nn's

Two layers of I = H, B=32, float32, a loss, backward and fused Adam, in STEPS steps, all of T steps or of lengths that
change from T/2 to T. `peak`: by how much the process has been larger than before the first step, with parameters,
optimizer and input in place; what libraries load and keep counts. `steady`: the same between steps, the median of the
second half: what glibc keeps of freed memory is in it, and differs by a fifth from run to run, as rows show where both
libraries run the same operator (`path` aten). No trials: where no verdicts are known, `auto`'s first process has 35 MB
more (two layers of H=256), which the next ones have not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import fastcells
from bench.cases.case import CELLS
from bench.measure.profile import status
from bench.measure.provenance import origin_line, print_table, provenance, write_csv

LIBRARIES = {"fastcells": fastcells, "nn": nn}
STEPS, LAYERS, B = 16, 2, 32
LENGTHS = ("same", "changing")


def train(library: str, cell: str, impl: str, T: int, H: int, lengths: str) -> dict[str, object]:
    """MB of this process's steps, and which path they took."""
    torch.manual_seed(0)
    random.seed(0)
    options = {"impl": impl} if library == "fastcells" else {}
    layer = getattr(LIBRARIES[library], cell)(H, H, LAYERS, **options)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    x = torch.randn(T, B, H)
    path = fastcells.explain(layer, x)["l0"].path if library == "fastcells" else ""  # a trial, if any, is before
    start, after = status("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(STEPS):
        optimizer.zero_grad()
        layer(x if lengths == "same" else x[: random.randint(T // 2, T)])[0].square().mean().backward()
        optimizer.step()
        after.append(status("VmRSS"))
    steady = statistics.median(after[STEPS // 2 :])
    return {"path": path, "peak_mb": (status("VmHWM") - start) / 1024, "steady_mb": (steady - start) / 1024}


def row_of(cell: str, impl: str, T: int, H: int, lengths: str, threads: int) -> dict[str, object]:
    """Both libraries', one after another."""
    found = {}
    for library in LIBRARIES:
        given = json.dumps([library, cell, impl, T, H, lengths])
        command = [sys.executable, "-m", "bench.memory", "--threads", str(threads), "--only", given]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "FASTCELLS_TUNE": "0"}
        )
        found[library] = json.loads(done.stdout)
    ours, theirs = found.values()
    row = {
        "cell": cell,
        "T": T,
        "B": B,
        "H": H,
        "layers": LAYERS,
        "lengths": lengths,
        "impl": impl,
        "path": ours["path"],
    }
    for what in ("peak_mb", "steady_mb"):
        row |= {what: ours[what], f"nn_{what}": theirs[what], f"{what[:-3]}_share": ours[what] / theirs[what]}
    return row


def sizes(quick: bool) -> list[tuple[int, int]]:
    """T and H."""
    return [(35, 256)] if quick else [*itertools.product((35, 256), (256, 512))]


def main() -> int:
    """Print the table and write bench/results/memory-cpu.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--impl", choices=("auto", "cpu", "torch"), nargs="+", default=["auto"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--require", type=float, metavar="X", help="fail if ours is more than X times torch.nn's")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(train(*options.only)))
        return 0
    rows = []
    for (T, H), cell, lengths, impl in itertools.product(sizes(options.quick), CELLS, LENGTHS, options.impl):
        rows.append(row_of(cell, impl, T, H, lengths, options.threads))
    origin = provenance(torch.device("cpu"))
    print(origin_line(origin))
    print_table(rows)
    if not options.no_write:
        print(f"written to {write_csv('memory-cpu', rows, origin)}")
    ours = [row for row in rows if row["path"] != "aten"]  # behind which is torch.nn's own operator
    shares = [share for row in ours for share in (row["peak_share"], row["steady_share"])]
    too_much = [share for share in shares if options.require is not None and float(str(share)) > options.require]
    if too_much:
        print(f"{len(too_much)} figures of {len(shares)} above {options.require} of torch.nn's", file=sys.stderr)
    return int(bool(too_much))


if __name__ == "__main__":
    sys.exit(main())
