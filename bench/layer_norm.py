"""`LayerNormGRU` and `LayerNormLSTM` beside their plain steps through autograd, and a loop over cells of nn.LayerNorm.

    python -m bench.layer_norm            # float32, I=H; writes bench/results/layer-norm-DEVICE.csv

All contenders have the same weights and input, and run in turn in each round; outputs and gradients are compared first.
On a CPU ours needs large tensors, which glibc gives back to the system after each call and gets anew, page by page;
a training loop that has it keep them (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) is faster by a tenth.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastcells
from bench.cases.layer_norm import twin
from bench.measure.guard import must_agree
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import compare, ratio, summary
from fastcells.autograd import unroll
from fastcells.backends.base import Steps

MODES = ("forward", "forward+backward")
SHAPES = ((35, 32, 256), (35, 8, 64))  # T, B, I = H
Run = Callable[[Tensor], Tensor]


def steps_of(layer: fastcells.LayerNormGRU | fastcells.LayerNormLSTM, x: Tensor) -> Tensor:
    """What the layer computed before it had a backward of its own: its steps, differentiated one by one."""
    spec, weights = layer._spec(), layer._weights_of(0, layer._weights())
    assert spec.project is not None
    state = tuple(x.new_zeros(x.shape[1], layer.hidden_size) for _ in spec.states)
    x_proj = spec.project(torch.nn.functional.linear(x, weights.w_ih), weights.recurrent)
    return unroll(spec, x_proj, state, weights.recurrent, Steps())[0]


def row_of(name: str, mode: str, T: int, B: int, H: int, device: torch.device, rounds: int) -> dict[str, object]:
    """Milliseconds, and how many times those of the layer the others take."""
    layer = getattr(fastcells, name)(H, H, device=device)
    loop, x, d = twin(layer), torch.randn(T, B, H, device=device), torch.randn(T, B, H, device=device)
    runs: dict[str, tuple[Run, list[Tensor]]] = {
        "ours": (lambda x: layer(x)[0], list(layer.parameters())),
        "steps": (partial(steps_of, layer), list(layer.parameters())),
        "nn.LayerNorm": (loop, list(loop.parameters())),
    }

    def call(which: str) -> list[Tensor]:
        run, weights = runs[which]
        if mode == "forward":
            with torch.no_grad():
                return [run(x)]
        out = run(x)
        return [out, *torch.autograd.grad(out, weights, d)]

    for other in ("steps", "nn.LayerNorm"):
        must_agree(call("ours")[:3], call(other)[:3], 1e-4)  # the output, dW_ih and dW_hh
    samples = compare({which: partial(call, which) for which in runs}, rounds=rounds)
    return {
        **{"layer": name, "mode": mode, "T": T, "B": B, "H": H, "dtype": "float32"},
        **{f"{which}, ms": summary(times).median for which, times in samples.items()},
        **{f"{which} / ours": ratio(samples[which], samples["ours"]) for which in ("steps", "nn.LayerNorm")},
        "rounds": rounds,
    }


def main() -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU, one table for each")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[dict[str, object]] = []
    for threads in options.threads if device.type == "cpu" else options.threads[:1]:
        torch.set_num_threads(threads)
        origin = provenance(device)
        table = [
            row_of(name, mode, *shape, device, options.rounds)
            for shape, name, mode in itertools.product(SHAPES, ("LayerNormGRU", "LayerNormLSTM"), MODES)
        ]
        print(origin_line(origin))
        print_table(table)
        rows += [row | origin for row in table]
    if not options.no_write:
        print(f"written to {write_csv(f'layer-norm-{device.type}', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
