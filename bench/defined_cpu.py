"""Defined cells in C: twins of the built-in cells beside the kernels written by hand, and two cells of the zoo beside a
loop of torch's operators over their cell and torch.compile of that loop. Forward and backward, float32.

    python -m bench.defined_cpu --threads 2             # the table; writes bench/results/defined-c-cpu.csv
    python -m bench.defined_cpu --threads 2 --compile   # with torch.compile, which needs a C++ compiler: minutes

`ratio` is the median over rounds of the other's time over ours in the same round, which a busy machine disturbs less
than the medians beside it. With one thread the clock is the processor's time for the process, which stands still while
others have the processor.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastcells
from bench.cases.loops import both_ways, cell_of, over_cell
from bench.measure.guard import must_agree
from bench.measure.provenance import RESULTS, origin_line, print_table, provenance, write_csv
from bench.measure.timing import calls_per_measurement, compare, ratio, summary
from fastcells import zoo
from fastcells.backends.cpu import native
from tests.defined.cells import TwinGRU, TwinLSTM, TwinRelu, TwinResetBefore, TwinRNN

T, B, H = 35, 32, 256
FILE = "defined-c-cpu"
Layer = Callable[..., Any]
TWINS: dict[str, tuple[Layer, Layer, dict[str, Any]]] = {
    "rnn_tanh": (TwinRNN, fastcells.RNN, {}),
    "rnn_relu": (TwinRelu, fastcells.RNN, {"nonlinearity": "relu"}),
    "gru": (TwinGRU, fastcells.GRU, {}),
    "gru_reset_before": (TwinResetBefore, fastcells.GRU, {"reset_after": False}),
    "lstm": (TwinLSTM, fastcells.LSTM, {}),
}
ZOO = ("PeepholeLSTM", "IndRNN")


def twin(name: str, inputs: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Both layers in C."""
    ours, theirs, options = TWINS[name]
    derived, by_hand = ours(inputs, H, impl="cpu"), theirs(inputs, H, impl="cpu", **options)
    derived.load_state_dict(by_hand.state_dict())
    x, d = torch.randn(T, B, inputs), torch.randn(T, B, H)
    return {
        who: lambda m=m: both_ways(m, list(m.parameters()), x, d)  # type: ignore[misc]
        for who, m in (("ours", derived), ("by hand", by_hand))
    }


def beside_loops(name: str, inputs: int, compiled: bool) -> dict[str, Callable[[], list[Tensor]]]:
    """The layer in C, and a loop over its cell."""
    layer = getattr(zoo, name)(inputs, H, impl="cpu")
    cell = cell_of(layer)
    loop = partial(over_cell, cell)
    x, d = torch.randn(T, B, inputs), torch.randn(T, B, H)
    models: dict[str, tuple[Callable[[Tensor], Any], nn.Module]] = {"ours": (layer, layer), "loop": (loop, cell)}
    if compiled:
        models["compiled loop"] = torch.compile(loop), cell
    return {
        who: lambda model=model, m=module: both_ways(model, list(m.parameters()), x, d)  # type: ignore[misc]
        for who, (model, module) in models.items()
    }


def processor_time(runs: Mapping[str, Callable[[], object]], rounds: int, inner: int) -> dict[str, list[float]]:
    """As `compare`, in milliseconds of the processor."""
    samples: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            run()  # brings its own memory and code back into the caches
            start = time.process_time()
            for _ in range(inner):
                run()
            samples[who].append((time.process_time() - start) * 1e3 / inner)
    return samples


def rows(name: str, inputs: int, runs: dict[str, Callable[[], list[Tensor]]], rounds: int) -> list[dict[str, object]]:
    """One for each contender."""
    expected = runs["ours"]()
    for who in runs:
        must_agree(runs[who](), expected, 1e-4)
    alone = torch.get_num_threads() == 1
    inner = max(5, calls_per_measurement(list(runs.values())))
    samples = processor_time(runs, rounds, inner) if alone else compare(runs, rounds=rounds, inner=inner)
    ms = {who: summary(times).median for who, times in samples.items()}
    case: dict[str, object] = {
        "cell": name,
        "T": T,
        "B": B,
        "I": inputs,
        "H": H,
        "instructions": native.instruction_set(),
    }
    case["clock"] = "processor" if alone else "wall"
    return [
        {**case, "contender": who, "ours_ms": ms["ours"], "theirs_ms": ms[who], "best_ours_ms": min(samples["ours"])}
        | {"best_theirs_ms": min(samples[who]), "ratio": ratio(samples[who], samples["ours"]), "rounds": rounds}
        for who in runs
        if who != "ours"
    ]


def main() -> int:
    """Print the table and write it beside the rows of other numbers of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--inputs", type=int, nargs="+", default=[H, 64], help="I (default: 256 and 64)")
    parser.add_argument("--compile", action="store_true", help="torch.compile's loop too")
    parser.add_argument("--no-write", action="store_true", help="leave bench/results alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    origin = provenance(torch.device("cpu"))
    print(origin_line(origin))
    found: list[dict[str, object]] = []
    for inputs in options.inputs:
        for name in TWINS:
            found += rows(name, inputs, twin(name, inputs), options.rounds)
        for name in ZOO:
            found += rows(name, inputs, beside_loops(name, inputs, options.compile), options.rounds)
    print_table(found)
    if not options.no_write:
        path = RESULTS / f"{FILE}.csv"
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["threads"] != origin["threads"]]
        print(f"written to {write_csv(FILE, [*kept, *({**row, **origin} for row in found)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
