"""Training beside processes that spin: the default number of threads against one thread.

    python -m bench.busy                  # four of them; a few minutes
    python -m bench.busy --require 1.2    # exit status 1 if the default is more than 1.2 times as slow

Both take turns, each in a process of its own: training on the lesson's shape, and a bare GRU in a loop (T=35, B=32,
I=H=256), where nobody sets torch's number of threads. Figures are medians over the rounds. Beside ours torch.nn's, and
one addition of torch's own, as in adding up gradients or a loss: torch asks for all its threads whoever has the cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.busy_layer import MODES
from bench.measure.provenance import origin_line, print_table, provenance
from fastcells.charlm import RunFolder

WAYS = {"default": [], "one thread": ["--threads", "1"]}
SPIN = "while True: pass"
LAYERS = [("fastcells", mode) for mode in MODES] + [("nn", "forward")]
TURN = 2  # seconds in a loop


def speed(options: list[str], epochs: int) -> float:
    """Tokens a second of a run, without its first epoch."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        command = [sys.executable, "-m", "fastcells", "train", "--epochs", str(epochs), "--out", str(run), *options]
        subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True)
        return statistics.median(row["tokens_per_second"] for row in RunFolder(run).metrics()[1:])


class Loop:
    """A process of `bench.busy_layer`, which waits for its turns."""

    def __init__(self, library: str, mode: str, threads: int) -> None:
        command = [sys.executable, "-m", "bench.busy_layer", library, mode, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to, self.answers = self.process.stdin, self.process.stdout
        self.answers.readline()  # "ready"

    def turn(self) -> float:
        """Milliseconds of a call."""
        self.to.write(f"{TURN}\n")
        return float(self.answers.readline().split()[0])

    def close(self) -> None:
        self.to.close()
        self.process.wait()


def loops(rounds: int) -> list[dict[str, object]]:
    """A row for each of LAYERS."""
    rows: list[dict[str, object]] = []
    for library, mode in LAYERS:
        both = [Loop(library, mode, threads) for threads in (0, 1)]
        default, one = zip(*([each.turn() for each in both] for _ in range(rounds)), strict=True)
        for each in both:
            each.close()
        ratio = statistics.median(a / b for a, b in zip(default, one, strict=True))
        row = {"library": "torch" if mode == "add" else library, "loop": mode, "ms": statistics.median(default)}
        rows.append({**row, "one_thread_ms": statistics.median(one), "ratio": ratio})
    return rows


def main() -> int:
    """Print the tables."""
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
        layers = loops(options.rounds)
    finally:
        for process in beside:
            process.kill()
            process.wait()
    median = {way: statistics.median(values) for way, values in found.items()}
    print(origin_line(provenance(torch.device("cpu"))))
    print_table([{"threads": way, "tokens_per_second": round(value)} for way, value in median.items()])
    slower = median["one thread"] / median["default"]
    print(f"{options.spinning} processes spin beside it: the default takes {slower:.2f} of one thread's time")
    print_table(layers)
    ours = [float(str(row["ratio"])) for row in layers if row["library"] == "fastcells"]
    return int(options.require is not None and max(slower, *ours) > options.require)


if __name__ == "__main__":
    sys.exit(main())
