"""A bare layer beside processes that spin, called in a loop: `bench.busy` starts it and gives it its turns.

    python -m bench.busy_layer LIBRARY MODE THREADS    # 0: torch's default; a line of seconds on stdin is a turn

Answers a turn by the milliseconds of a call, the mean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastcells

LIBRARIES = {"fastcells": fastcells, "nn": nn}
MODES = ("forward", "gradients", "add")
T, B, H = 35, 32, 256


def call_of(library: str, mode: str) -> Callable[[], object]:
    """`forward`: a GRU without gradients. `gradients`: with its backward. `add`: no layer; torch adds W_hh to W_hh."""
    layer = LIBRARIES[library].GRU(H, H)
    x, d_out = torch.randn(T, B, H), torch.randn(T, B, H)

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0], list(layer.parameters()), d_out)

    def add() -> Tensor:
        with torch.no_grad():
            return layer.weight_hh_l0 + layer.weight_hh_l0

    return {"forward": forward, "gradients": gradients, "add": add}[mode]


def main() -> None:
    library, mode, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    call = call_of(library, mode)
    call()
    print("ready", flush=True)
    for line in sys.stdin:
        times = [time.perf_counter()]
        while times[-1] - times[0] < float(line):
            call()
            times.append(time.perf_counter())
        print(1e3 * (times[-1] - times[0]) / (len(times) - 1), flush=True)


if __name__ == "__main__":
    main()
