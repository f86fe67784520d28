"""Start-up and memory of `fastcells train` on generated texts of 1 MB to 1 GB.

    python -m bench.corpus                        # 1, 20, 100 MB and 1 GB: minutes, and 5 GB of disk
    python -m bench.corpus --mb 1 --mb 100        # these alone
    python -m bench.corpus --mb 100 --require 300 8   # fails above so many MB, or seconds for 100 MB

Each text is learned in a process of its own, up to step 200. *Seconds* go from the process's start to its first step,
of which the processor worked for *cpu*. *MB* is what the process held at most beside what it holds on 10 kB of text:
torch, the model and its step. Random sampling takes more memory than consecutive: its order of the stretches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.measure.provenance import print_table, provenance, write_csv

STEPS = 200
OPTIONS = [
    "--hidden",
    "64",
    "--epochs",
    "1",
    "--sampling",
    "random",
    "--batch",
    "16",
    "--length",
    "1",
    "--device",
    "cpu",
]


def generated(path: Path, size: int) -> None:
    """A text of `size` bytes: words of letters, some of two bytes, in lines."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyzéüß", k=chance.randint(1, 9))) for _ in range(5000)]
    block = "".join(chance.choice(words) + chance.choice([" ", " ", ", ", ".\n"]) for _ in range(200_000)).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block[: size - file.tell()].decode("utf-8", "ignore").encode() or b" ")


def child(corpus: str, out: str) -> None:
    """Train up to a step, and print what it took."""
    from fastcells.charlm.cli import main
    from fastcells.charlm.training import Training

    first: dict[str, float] = {}
    step = Training._step

    def counting(self: Training, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        first.setdefault("wall", time.time())
        first.setdefault("cpu", time.process_time())
        if self.place.step == STEPS:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, pairs)

    Training._step = counting  # type: ignore[method-assign]
    torch.set_num_threads(1)
    main(["train", corpus, "--out", out, *OPTIONS])
    print(json.dumps({**first, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def measured(folder: Path, size: int) -> dict[str, float]:
    """The figures of one size."""
    corpus, out = folder / "corpus.txt", folder / "run"
    generated(corpus, size)
    start = time.time()
    command = [sys.executable, "-m", "bench.corpus", "--child", str(corpus), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    for path in (*out.iterdir(), corpus):
        path.unlink()
    out.rmdir()
    return {"seconds": found["wall"] - start, "cpu": found["cpu"], "mb": found["mb"]}


def main() -> int:
    """Print the table, write bench/results/corpus-cpu.csv if all sizes were measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, action="append", help="a size; may be repeated")
    parser.add_argument(
        "--require", type=float, nargs=2, metavar=("MB", "SECONDS"), help="of the processor, for up to 100 MB"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    rows: list[dict[str, object]] = []
    worst = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as name:
        base = measured(Path(name), 10_000)
        for size in options.mb or [1, 20, 100, 1000]:
            found = measured(Path(name), size * 10**6)
            extra = found["mb"] - base["mb"]
            worst = [max(worst[0], extra), max(worst[1], found["cpu"] / max(1, size / 100))]
            rows.append({"text_mb": size, "seconds": found["seconds"], "cpu": found["cpu"], "mb": extra})
    print_table(rows)
    if not options.mb:
        print(f"written to {write_csv('corpus-cpu', rows, provenance(torch.device('cpu')))}")
    if options.require and (worst[0] > options.require[0] or worst[1] > options.require[1]):
        print(
            f"{worst[0]:.0f} MB and {worst[1]:.1f} s of processor time for 100 MB are more than required",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
