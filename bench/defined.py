"""Defined cells on a CPU, forward and backward: derived twins of the built-in cells beside the loops written by hand,
and cells of the zoo beside a loop of torch's operators over their cell, and torch.compile of that loop.

    python -m bench.defined             # the tables; writes bench/results/defined-twins-cpu.csv and defined-zoo-cpu.csv
    python -m bench.defined --compile   # with torch.compile, which needs a C++ compiler
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases.loops import both_ways, cell_of, over_cell
from bench.measure.guard import must_agree
from bench.measure.provenance import origin_line, print_table, provenance, write_csv
from bench.measure.timing import calls_per_measurement, compare, ratio, summary
from fastcells import CannotRun, spec, zoo
from fastcells.backends.base import Inputs, LayerWeights, StepInput, Steps
from fastcells.backends.torch.backend import DERIVED, loop_of
from fastcells.defined.layer import DefinedLayer
from fastcells.one_direction import run
from fastcells.spec import CellSpec, RecurrentWeights
from tests.defined.cells import TwinGRU, TwinLSTM, TwinRelu, TwinResetBefore, TwinRNN

SHAPES = ((35, 32, 256), (35, 32, 64))  # T, B, H
TWINS: dict[str, tuple[CellSpec, type[DefinedLayer]]] = {
    "rnn_tanh": (spec.RNN_TANH, TwinRNN),
    "rnn_relu": (spec.RNN_RELU, TwinRelu),
    "gru": (spec.GRU_RESET_AFTER, TwinGRU),
    "gru_reset_before": (spec.GRU_RESET_BEFORE, TwinResetBefore),
    "lstm": (spec.LSTM, TwinLSTM),
}
IMPLEMENTATIONS = ("torch", "cpu")


def twin(name: str, T: int, B: int, H: int, rounds: int) -> dict[str, object]:
    """Both loops in torch on the same numbers: milliseconds of forward and backward, and what they save."""
    specs = {"by hand": TWINS[name][0], "derived": TWINS[name][1].kind.spec()}
    G, states = specs["derived"].num_gates, specs["derived"].num_states
    x, d, state = torch.randn(T, B, H), torch.randn(T, B, H), tuple(torch.randn(B, H) for _ in range(states))
    w_ih, w_hh = (torch.randn(G * H, H).mul_(H**-0.5).requires_grad_() for _ in range(2))
    b_hh = torch.randn(G * H, requires_grad=True)
    weights = LayerWeights(w_ih, None, RecurrentWeights(w_hh, b_hh))

    def both_ways(one: CellSpec) -> tuple[Tensor, ...]:
        out, _ = run(DERIVED, one, x, state, weights, Steps())
        return out.detach(), *torch.autograd.grad(out, (w_ih, w_hh, b_hh), d)

    def saved(one: CellSpec) -> int:
        with torch.no_grad():
            inputs = Inputs(StepInput(x @ w_ih.t()), state, weights.recurrent, Steps())
            return sum(s.numel() for s in loop_of(one).forward(inputs, save=True).saved) // (T * B * H)

    runs: dict[str, Callable[[], Any]] = {who: lambda one=one: both_ways(one) for who, one in specs.items()}  # type: ignore[misc]
    must_agree(list(runs["derived"]()), list(runs["by hand"]()), 1e-5)
    samples = compare(runs, rounds=rounds, inner=calls_per_measurement(list(runs.values())))
    ms = {who: summary(times).median for who, times in samples.items()}
    tensors = {f"saved {who}": saved(one) for who, one in specs.items()}
    return {
        "cell": name,
        "T": T,
        "B": B,
        "H": H,
        **ms,
        "ratio": ratio(samples["by hand"], samples["derived"]),
        **tensors,
    }


def of_the_zoo(name: str, T: int, B: int, H: int, rounds: int, compiled: bool) -> dict[str, object]:
    """The layer by each implementation that runs it, beside a loop over its cell: milliseconds, both ways."""
    torch.manual_seed(0)
    layer: DefinedLayer = getattr(zoo, name)(H, H)
    cell = cell_of(layer)
    loop = partial(over_cell, cell)
    x, d = torch.randn(T, B, H), torch.randn(T, B, H)
    runs: dict[str, Callable[[], Any]] = {"loop": lambda: both_ways(loop, cell.parameters(), x, d)}
    if compiled:
        fused = torch.compile(loop)
        runs["compiled loop"] = lambda: both_ways(fused, cell.parameters(), x, d)
    for impl in IMPLEMENTATIONS:
        layer.impl = impl
        try:
            layer(x)
        except CannotRun:
            continue

        def by_impl(impl: str = impl) -> list[Tensor]:
            layer.impl = impl
            return both_ways(layer, layer.parameters(), x, d)

        must_agree(by_impl(), runs["loop"](), 1e-4)
        runs[impl] = by_impl
    samples = compare(runs, rounds=rounds, inner=calls_per_measurement(list(runs.values())))
    ms = {who: summary(times).median for who, times in samples.items()}
    best = min((impl for impl in IMPLEMENTATIONS if impl in ms), key=lambda impl: ms[impl])
    return {"cell": name, "T": T, "B": B, "H": H, **ms, "speed-up": ratio(samples["loop"], samples[best])}


def main() -> int:
    """Print both tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="torch.compile's loop too")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    origin = provenance(torch.device("cpu"))
    print(origin_line(origin))
    names = sorted(set(zoo.CELLS) - {"UpdateGateRNN"})
    tables = {
        "defined-twins-cpu": [twin(name, *shape, options.rounds) for shape in SHAPES for name in TWINS],
        "defined-zoo-cpu": [of_the_zoo(name, *SHAPES[0], options.rounds, options.compile) for name in names],
    }
    for file, rows in tables.items():
        print_table(rows)
        if not options.no_write:
            print(f"written to {write_csv(file, rows, origin)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
