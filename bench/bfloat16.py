"""bfloat16 on a CPU: ours in C beside torch.nn in bfloat16 and ours in float32, one layer of I = H.

    python -m bench.bfloat16              # the lesson's shape, one thread and two
    python -m bench.bfloat16 --full       # the grid behind fastcells/backends/cpu/policy.py, one thread
    python -m bench.bfloat16 --no-write   # leave bench/results alone

Processors with AMX have files of their own.

All contenders have the same weights and input, and run in turn in each round.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import fastcells
from bench.measure.guard import must_agree
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import calls_per_measurement, compare, ratio, summary
from fastcells.backends.cpu import native

CELLS, MODES = ("GRU", "RNN", "LSTM"), ("forward", "forward+backward")
LESSON = ((35, 32, 256),)  # T, B, I = H
GRID = itertools.product((4, 16, 35, 128), (1, 8, 32, 128), (64, 256, 512, 1024))
MOST = 35 * 32 * 1024 * 1024  # multiplications of a gate; what takes longer says nothing new


def contenders(cell: str, mode: str, T: int, B: int, H: int) -> dict[str, Callable[[], list[Tensor]]]:
    """What is timed: the output, and with the backward the gradients."""
    ours = getattr(fastcells, cell)(H, H, impl="cpu")
    theirs = getattr(nn, cell)(H, H)
    theirs.load_state_dict(ours.state_dict())
    wide = getattr(fastcells, cell)(H, H, impl="cpu")
    wide.load_state_dict(ours.state_dict())
    x, d = torch.randn(T, B, H), torch.randn(T, B, H)

    def run(layer: nn.Module, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        layer, given, cotangent = layer.to(dtype), x.to(dtype), d.to(dtype)
        leaf = given.clone().requires_grad_()

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [layer(given)[0]]

        def both() -> list[Tensor]:
            out = layer(leaf)[0]
            return [out, *torch.autograd.grad(out, [leaf, *layer.parameters()], cotangent)]

        return forward if mode == "forward" else both

    bf16 = torch.bfloat16
    return {"ours": run(ours, bf16), "torch.nn": run(theirs, bf16), "float32": run(wide, torch.float32)}


def row_of(cell: str, mode: str, T: int, B: int, H: int, rounds: int) -> dict[str, object]:
    """Milliseconds, and how many times those of ours the others take."""
    runs = contenders(cell, mode, T, B, H)
    must_agree(runs["ours"]()[:1], runs["torch.nn"]()[:1], 0.1)  # tests/cpu/test_cpu_bf16.py compares them closely
    inner = calls_per_measurement(list(runs.values()))
    samples = compare(runs, rounds=rounds, warmup=1, inner=inner)
    return {
        **{"cell": cell, "mode": mode, "T": T, "B": B, "H": H, "dtype": "bfloat16"},
        **{f"{which}, ms": summary(times).median for which, times in samples.items()},
        **{f"{which} / ours": ratio(samples[which], samples["ours"]) for which in ("torch.nn", "float32")},
        "rounds": rounds,
    }


def grid(full: bool) -> Iterator[tuple[int, int, int]]:
    """Shapes, the quick ones first."""
    yield from sorted((s for s in GRID if s[0] * s[1] * s[2] ** 2 <= MOST), key=lambda s: s[2]) if full else LESSON


def main() -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every shape of the grid")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", help="one table for each; 1 and 2, with --full 1")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    if native.bf16_obstacle() is not None:
        print(native.bf16_obstacle())
        return 1
    rows: list[dict[str, object]] = []
    shapes = list(grid(options.full))
    for threads in options.threads or ([1] if options.full else [1, 2]):
        torch.set_num_threads(threads)
        origin = provenance(torch.device("cpu"))
        cases = itertools.product(shapes, CELLS, MODES)
        table = [row_of(cell, mode, *shape, options.rounds) for shape, cell, mode in cases]
        print(origin_line(origin))
        print_table(table)
        rows += [{**row, **origin} for row in table]
    if not options.no_write:
        amx = "-amx" if native.bf16_instruction_set() == "amx_bf16" else ""  # processors that have little in common
        print(f"written to {write_csv('bfloat16-cpu' + ('-grid' if options.full else '') + amx, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
