"""Training beside processes that spin: the default number of threads against one thread.

    python -m bench.busy                  # four of them; a minute or two
    python -m bench.busy --require 1.2    # exit status 1 if the default is more than 1.2 times as slow

Both take turns, each in a process of its own, on the lesson's shape; tokens a second are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.measure.provenance import origin_line, print_table, provenance
from fastcells.charlm import RunFolder

WAYS = {"default": [], "one thread": ["--threads", "1"]}
SPIN = "while True: pass"


def speed(options: list[str], epochs: int) -> float:
    """Tokens a second of a run, without its first epoch."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        command = [sys.executable, "-m", "fastcells", "train", "--epochs", str(epochs), "--out", str(run), *options]
        subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True)
        return statistics.median(row["tokens_per_second"] for row in RunFolder(run).metrics()[1:])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spinning", type=int, default=4, metavar="N", help="processes beside (default 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--require", type=float, metavar="X", help="fail if the default is more than X times as slow")
    options = parser.parse_args()
    beside = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(options.spinning)]
    try:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, given in WAYS.items():
                found[way].append(speed(given, options.epochs))
    finally:
        for process in beside:
            process.kill()
            process.wait()
    median = {way: statistics.median(values) for way, values in found.items()}
    print(origin_line(provenance(torch.device("cpu"))))
    print_table([{"threads": way, "tokens_per_second": round(value)} for way, value in median.items()])
    slower = median["one thread"] / median["default"]
    print(f"{options.spinning} processes spin beside it: the default takes {slower:.2f} of one thread's time")
    return int(options.require is not None and slower > options.require)


if __name__ == "__main__":
    sys.exit(main())
