"""The matmuls around a recurrence, float32 on a CPU: torch.mm (MKL here), oneDNN, and the kernels in C.

    python -m bench.matmul        # the table; writes bench/results/matmul-cpu.csv

Why `fastcells/cpu_linear.py` goes where it goes. N = T * B tokens; G*H rows of weights, I columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.measure.guard import must_agree
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import calls_per_measurement, compare, summary
from fastcells.backends.cpu import native

SHAPES = (
    (1120, 768, 256),
    (1120, 1024, 256),
    (1120, 256, 256),
    (1120, 1024, 1024),
    (1120, 1027, 1027),
    (280, 384, 128),
    (128, 768, 256),
    (32, 768, 256),
    (1120, 1027, 256),
)


def products(N: int, rows: int, columns: int) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """The three products of a linear layer, and who computes them."""
    x, w, d = torch.randn(N, columns), torch.randn(rows, columns), torch.randn(N, rows)
    onednn = torch.ops.mkldnn._linear_pointwise

    def each(a: Tensor, b: Tensor, in_c: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
        return {"mm": partial(torch.mm, a, b), "oneDNN": partial(onednn, a, b.t(), None, "none", [], ""), "C": in_c}

    return {
        "x W^T": each(x, w.t(), lambda: native.linear(x, w)),
        "d W": each(d, w, lambda: native.linear(d, w, transposed=True)),
        "d^T x": each(d.t(), x, lambda: native.weight_gradients(d, x)[0]),
    }


def main() -> int:
    """Print the table of GFLOP/s and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    if native.obstacle() is not None or not torch.backends.mkldnn.is_available():
        print(native.obstacle() or "this torch has no oneDNN")
        return 1
    rows: list[dict[str, object]] = []
    for N, G, I in SHAPES:  # noqa: E741
        for name, contenders in products(N, G, I).items():
            for run in contenders.values():
                must_agree([run()], [contenders["mm"]()], 1e-4)
            samples = compare(contenders, rounds=options.rounds, inner=calls_per_measurement(list(contenders.values())))
            gflops = {who: 2e-6 * N * G * I / summary(times).median for who, times in samples.items()}
            rows.append({"product": name, "N": N, "rows": G, "columns": I, **gflops, "unit": "GFLOP/s"})
    origin = provenance(torch.device("cpu"))
    print(origin_line(origin))
    print_table(rows)
    if not options.no_write:
        print(f"written to {write_csv('matmul-cpu', rows, origin)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
