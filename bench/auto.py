"""What trials choose, and whether a second measurement agrees: `impl="auto"` on the grid of bench.layers.

    python -m bench.auto                    # the grid: many minutes on a CPU
    python -m bench.auto --quick            # the lesson's shape
    python -m bench.auto --threads 1 --ship # put the verdicts into the file that ships with fastcells

Each kind of call has a trial in an empty memory, as a user's first call has. Then all candidates that were right are
timed again, on other tensors, for twice as long: `slower` is the time of the chosen one over the fastest's.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from bench.cases.case import CELLS
from bench.layers import GRID
from bench.measure.duel import Row
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from fastcells.backends.base import Call
from fastcells.spec import SPECS
from fastcells.tuning.clock import clock_of
from fastcells.tuning.kind import kind_of
from fastcells.tuning.machine import machine
from fastcells.tuning.memory import BASELINE, SHIPPED, Verdict, as_text, parse
from fastcells.tuning.problem import Problem
from fastcells.tuning.trial import candidates, compare, trial

RULES = {"GRU": "gru", "LSTM": "lstm", "RNN": "rnn_tanh"}
TOLERATED = 1.05  # times as slow as the fastest


def call_of(cell: str, T: int, B: int, H: int, training: bool, device: torch.device) -> Call:
    """A layer's call with dense input of H features."""
    spec = SPECS[RULES[cell]]
    w_ih, w_hh = (torch.empty(spec.num_gates * H, H, device=device, dtype=torch.float32) for _ in range(2))
    return Call("auto", spec, False, T, B, w_ih, w_hh.requires_grad_(training))


def measure(call: Call, training: bool) -> tuple[Row, Verdict]:
    """A trial, and the second measurement."""
    clock, choices = clock_of(call.w_hh.device), candidates(call)
    start = time.perf_counter()
    verdict = trial(call, training, choices, clock)
    seconds = time.perf_counter() - start
    problem = Problem(call, verdict.steps, training)
    right: dict[str, Callable[[], object]] = {
        choice.name: partial(problem.run, choice) for choice in choices if choice.name in verdict.microseconds
    }
    rounds = [compare(right, clock) for _ in range(2)]
    us = {name: min(each[name] for each in rounds) for name in right}
    slower = us[verdict.chosen] / min(us.values())
    row: Row = {"chosen": verdict.chosen, "trial_s": seconds, "us": us[verdict.chosen], "torch_us": us[BASELINE]}
    row |= {"first_ratio": verdict.microseconds[BASELINE] / verdict.microseconds[verdict.chosen]}
    return {**row, "ratio": us[BASELINE] / us[verdict.chosen], "slower": slower, "out": str(verdict.out or "")}, verdict


def main() -> int:
    """Print the table and write bench/results/auto-DEVICE.csv; exit status 1 if a choice was not the fastest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it takes)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    parser.add_argument("--ship", action="store_true", help="keep the verdicts that were measured twice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    sizes = ((35,), (32,), (256,)) if options.quick else (GRID["T"][1:], GRID["B"], GRID["H"])
    rows: list[Row] = []
    verdicts: dict[str, Verdict] = {}
    for T, B, H, cell, training in itertools.product(*sizes, CELLS, (False, True)):
        call = call_of(cell, T, B, H, training, device)
        row, verdict = measure(call, training)
        if float(str(row["slower"])) <= TOLERATED:  # else it is the user's own trial that decides
            verdicts[str(kind_of(call))] = verdict
        rows.append({"cell": cell, "mode": "training" if training else "inference", "T": T, "B": B, "H": H, **row})
        print(f"{cell} {rows[-1]['mode']} T={T} B={B} H={H}: {row['chosen']}, {row['slower']:.3f}", flush=True)
    origin = provenance(device)
    print(origin_line(origin))
    print_table(rows)
    slow = [row for row in rows if float(str(row["slower"])) > TOLERATED]
    gain = math.exp(sum(math.log(float(str(row["ratio"]))) for row in rows) / len(rows))
    total = sum(float(str(row["trial_s"])) for row in rows)
    print(f"{len(rows)} kinds of call, {total:.1f} s of trials; {gain:.2f} times as fast as torch.nn (geometric mean)")
    print(f"{len(slow)} choices more than {TOLERATED - 1:.0%} slower than the fastest when measured again")
    if not options.no_write:
        name = f"auto-{device.type}" + (f"-{options.threads}-threads" if options.threads else "")
        print(f"written to {write_csv(name, rows, origin)}")
    if options.ship:
        ship(device, verdicts)
    return 1 if slow else 0


def ship(device: torch.device, verdicts: dict[str, Verdict]) -> None:
    """Keep the verdicts in the file that ships, in place of what it has for such a device."""
    here = machine(device, torch.get_num_threads())
    known = parse(SHIPPED.read_bytes()) if SHIPPED.exists() else {}
    known = {there: found for there, found in known.items() if there.device != here.device}
    SHIPPED.write_text(as_text({**known, here: verdicts}), encoding="utf-8")
    print(f"written to {SHIPPED}")


if __name__ == "__main__":
    sys.exit(main())
