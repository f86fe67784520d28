"""Memory over time: thousands of steps of changing lengths and batches, and what the process has grown by.

    python -m bench.soak                  # minutes: fastcells and torch.nn, each in a process of its own
    python -m bench.soak --steps 300      # the short version that `make test` runs

Token ids and dense input, packed and padded, forward and training, each cell, at shapes where C runs. Resident memory
after every kind of step has been seen at its largest is the start; what it has grown by at the end, and once the layers
are gone, must be at most torch.nn's growth plus ALLOWED. `--leak` keeps some bytes of each step, which has to be found.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastcells

ALLOWED = 30  # MB more than torch.nn; the pool of buffers keeps 18 at most
# Without "auto" for an LSTM, and without torch.nn's: behind both is oneDNN's, whose cached primitives grow with every
# shape, by 100 MB in 4000 steps, in which anything could hide.
LAYERS = (("RNN", "auto"), ("RNN", "cpu"), ("GRU", "auto"), ("GRU", "cpu"), ("LSTM", "cpu"))
VOCABULARY, HIDDEN, LONGEST, LARGEST = 64, 128, 60, 40


def resident() -> float:
    """MB of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def one_step(layer: nn.Module, T: int, B: int, ids: bool, packed: bool, training: bool) -> None:
    """Forward, and backward where training, of one random batch; torch.nn has no token ids and gets their one-hots."""
    symbols = torch.randint(VOCABULARY, (T, B))
    x: Tensor = symbols if ids else torch.randn(T, B, VOCABULARY)
    if ids and isinstance(layer, nn.RNNBase) and type(layer).__module__.startswith("torch."):
        x = nn.functional.one_hot(symbols, VOCABULARY).float()
    given: Tensor | PackedSequence = x
    if packed:
        given = pack_padded_sequence(x, torch.randint(1, T + 1, (B,)), enforce_sorted=False)
    with torch.set_grad_enabled(training):
        out = layer(given)[0]
        values = out.data if isinstance(out, PackedSequence) else out
        if training:
            values.square().mean().backward()
            layer.zero_grad(set_to_none=True)


def soak(library: str, steps: int, leak: int) -> dict[str, float]:
    """MB that `steps` steps have added, and that are left of them without the layers."""
    layers: list[nn.Module] = []
    for cell, impl in LAYERS:
        make: Callable[..., nn.Module] = getattr(fastcells if library == "fastcells" else nn, cell)
        if library == "fastcells":
            layers.append(make(VOCABULARY, HIDDEN, impl=impl))
        elif cell != "LSTM":
            layers.append(make(VOCABULARY, HIDDEN))
    kinds = [(ids, packed, training) for ids in (False, True) for packed in (False, True) for training in (False, True)]
    kept: list[bytes] = []
    for layer in layers:
        for kind in kinds:
            one_step(layer, LONGEST, LARGEST, *kind)
    gc.collect()
    start = peak = resident()
    for _ in range(steps):
        T, B = random.randint(2, LONGEST), random.randint(1, LARGEST)
        one_step(random.choice(layers), T, B, *random.choice(kinds))
        kept.append(b"\1" * leak)
        peak = max(peak, resident())
    end = resident()
    layers.clear()
    gc.collect()
    return {"start": start, "growth": end - start, "peak": peak - start, "left": resident() - start}


def main() -> int:
    """Compare the two; 1 where fastcells has grown too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", type=int, default=0, help="bytes that each step of fastcells keeps")
    parser.add_argument("--only", choices=["fastcells", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        torch.set_num_threads(1)
        torch.manual_seed(options.seed)
        random.seed(options.seed)
        leak = options.leak if options.only == "fastcells" else 0
        print(json.dumps(soak(options.only, options.steps, leak)))
        return 0
    arguments = [f"--steps={options.steps}", f"--seed={options.seed}", f"--leak={options.leak}"]
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", "bench.soak", "--only", name, *arguments], stdout=subprocess.PIPE, text=True
        )
        for name in ("torch", "fastcells")
    }
    found: dict[str, dict[str, float]] = {}
    for name, process in processes.items():
        printed, _ = process.communicate()
        if process.returncode:
            print(f"{name} ended with {process.returncode}")
            return 1
        found[name] = json.loads(printed)
        print(f"{name:9} " + ", ".join(f"{what} {value:.0f} MB" for what, value in found[name].items()))
    too_much = [w for w in ("growth", "left") if found["fastcells"][w] > max(0, found["torch"][w]) + ALLOWED]
    print(f"{options.steps} steps: " + (f"too much memory: {', '.join(too_much)}" if too_much else "within bounds"))
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
