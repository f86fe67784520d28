"""Layers and cells on dense input against their torch.nn namesakes: forward, and forward plus backward.

    python -m bench.layers                  # a short selection of shapes
    python -m bench.layers --require 0.95   # exit status 1 if a row is slower than that

Both sides have the same weights and input; outputs and gradients are compared before timing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastcells
from bench.guard import must_agree, must_run
from bench.provenance import print_table, provenance, write_csv
from bench.timing import compare, synchronizer
from fastcells.dispatch import IMPLEMENTATIONS

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
SHAPES = ((1, 1, 64), (35, 32, 256), (35, 1, 128), (8, 32, 64), (100, 8, 128))  # T, B, I = H
# The same ATen operator on both sides: not one bit may differ on a CPU. cuDNN's backward is not that strict.
TOLERANCE = {"cpu": 0.0, "cuda": 1e-4}
# Another operator: float32 sums in another order; on a GPU both sides multiply in tf32, whose rounding is 5e-4.
FLOAT32, TF32 = 1e-4, 2e-2


def case(name: str, device: torch.device, T: int, B: int, H: int, impl: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Ours, theirs with the same weights, and an input."""
    ours, theirs = getattr(fastcells, name)(H, H, impl=impl).to(device), getattr(nn, name)(H, H).to(device)
    theirs.load_state_dict(ours.state_dict())
    shape = (B, H) if name in CELLS else (T, B, H)
    return ours, theirs, torch.randn(shape, device=device)


def forward(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A call without gradients that returns the outputs."""

    def run() -> Tensor:
        with torch.no_grad():
            return _outputs(module(x))

    return run


def forward_backward(module: nn.Module, x: Tensor, d_out: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward; returns the outputs and the gradients of input and parameters."""

    def run() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        module.zero_grad()
        out = _outputs(module(leaf))
        out.backward(d_out)
        assert leaf.grad is not None
        return [out, leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)]

    return run


def _outputs(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def rows_of(
    name: str, device: torch.device, T: int, B: int, H: int, rounds: int, impl: str = "auto"
) -> list[dict[str, object]]:
    """Compare and time one layer or cell at one shape; no row, and a line why, where `impl` cannot run it."""
    ours, theirs, x = case(name, device, T, B, H, impl)
    try:
        choice = fastcells.explain(ours, x)  # type: ignore[arg-type]
    except RuntimeError as error:
        print(f"{name} T={T} B={B} H={H} left out: {error}")
        return []
    must_run(choice, {"triton": "sequence", "triton-step": "step"}.get(impl, "aten"))
    same_operator = choice.path == "aten"
    d_out = torch.randn_like(forward(ours, x)())
    step, step_theirs = forward_backward(ours, x, d_out), forward_backward(theirs, x, d_out)
    must_agree(step(), step_theirs(), TOLERANCE[device.type] if same_operator else TF32 if x.is_cuda else FLOAT32)
    modes: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {"ours": forward(ours, x), "theirs": forward(theirs, x)},
        "forward+backward": {"ours": step, "theirs": step_theirs},
    }
    rows: list[dict[str, object]] = []
    for mode, contenders in modes.items():
        trial, _ = compare(contenders, rounds=5, synchronize=synchronizer(device))
        inner = max(1, round(5.0 / max(trial["ours"].median, 1e-3)))  # about 5 ms a measurement
        timings, ratio = compare(contenders, rounds=rounds, inner=min(inner, 200), synchronize=synchronizer(device))
        rows.append(
            {
                "module": name,
                "mode": mode,
                "T": 1 if name in CELLS else T,
                "B": B,
                "H": H,
                "dtype": "float32",
                "impl": choice.impl,
                "path": choice.path,
                "ours_ms": timings["ours"].median,
                "nn_ms": timings["theirs"].median,
                "rounds": rounds,
                "ratio": ratio("theirs", "ours"),
            }
        )
    return rows


def main() -> int:
    """Print the table, write bench/results/layers-DEVICE.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto")
    parser.add_argument("--require", type=float, metavar="X", help="fail if a row is less than X times as fast")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    more = (options.rounds, options.impl)
    rows = [r for name in LAYERS for shape in SHAPES for r in rows_of(name, device, *shape, *more)]
    rows += [r for name in CELLS for B in (1, 32) for r in rows_of(name, device, 1, B, 128, *more)]
    origin = provenance(device)
    print(", ".join(f"{key} {value}" for key, value in origin.items() if value))
    print_table(rows)
    if not options.no_write:
        name = f"layers-{device.type}" + (f"-{options.impl}" if options.impl != "auto" else "")
        print(f"written to {write_csv(name, rows, origin)}")
    slow = [row for row in rows if options.require is not None and float(str(row["ratio"])) < options.require]
    for row in slow:
        print(f"slower than {options.require}: {row}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
