"""Linear layer and cross-entropy, forward and backward: `functional.linear_cross_entropy` beside torch's two functions.

    python -m bench.loss                    # 1,120 rows, H=256, vocabularies of 65 to 50,000: a minute or two
    python -m bench.loss --require 1.0      # exit status 1 where it is slower than torch

Milliseconds are medians of interleaved rounds; megabytes are the peak of what torch
allocates, and of the process, which sees C's buffers too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure.profile import peak_memory
from bench.measure.provenance import origin_line, print_table, provenance
from bench.measure.timing import compare, ratio, summary
from fastcells.functional import linear_cross_entropy


def step(function: Callable[..., Tensor], leaves: list[Tensor], target: Tensor) -> Callable[[], object]:
    """The loss and its gradients."""
    return lambda: torch.autograd.grad(function(*leaves, target), leaves)


def theirs(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), target)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--rows", type=int, default=1120)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[65, 1027, 2582, 50000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--require", type=float, metavar="X", help="fail where it is less than X times as fast")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rows = []
    for V in options.vocabulary:
        shapes = ((options.rows, options.hidden), (V, options.hidden), (V,))
        leaves = [torch.randn(s, device=device).mul_(s[-1] ** -0.5).to(dtype).requires_grad_() for s in shapes]
        hidden, weight, bias = leaves
        target = torch.randint(V, (options.rows,), device=device)
        runs = {"ours": step(linear_cross_entropy, leaves, target), "nn": step(theirs, leaves, target)}
        losses = [f(hidden, weight, bias, target) for f in (linear_cross_entropy, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)  # of bfloat16: two roundings
        samples = compare(runs, rounds=options.rounds if V < 10000 else max(3, options.rounds // 3), warmup=1, inner=1)
        peaks = {name: peak_memory(run, device, 1) for name, run in runs.items()}
        rows.append(
            {
                "rows": options.rows,
                "H": options.hidden,
                "V": V,
                "dtype": options.dtype,
                "ms": summary(samples["ours"]).median,
                "nn_ms": summary(samples["nn"]).median,
                "ratio": ratio(samples["nn"], samples["ours"]),
                "peak_mb": peaks["ours"].allocated,
                "nn_peak_mb": peaks["nn"].allocated,
                "resident_mb": peaks["ours"].resident,
                "nn_resident_mb": peaks["nn"].resident,
            }
        )
    print(origin_line(provenance(device)))
    print_table(rows)
    slowest = min(float(str(row["ratio"])) for row in rows)
    if options.require is not None and slowest < options.require:
        print(f"one is {slowest:.2f} times as fast, and {options.require} was required", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
