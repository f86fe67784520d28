"""`fastcells tune`: trials ahead of time from the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastcells import layers
from fastcells.command_line import positive
from fastcells.stack import Layer
from fastcells.tuning import verdicts
from fastcells.tuning.tune import Tuned, tune

CELLS: dict[str, tuple[Callable[..., Layer], dict[str, Any]]] = {
    "rnn": (layers.RNN, {}),
    "rnn-relu": (layers.RNN, {"nonlinearity": "relu"}),
    "gru": (layers.GRU, {}),
    "gru-reset-before": (layers.GRU, {"reset_after": False}),
    "lstm": (layers.LSTM, {}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULTS = {"cell": "gru", "hidden": 256, "batch": 32, "steps": 35, "dtype": "float32"}
MODES = {"inference": False, "training": True}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `fastcells tune` takes."""

    takes: dict[str, dict[str, Any]] = {
        "cell": {"choices": tuple(CELLS), "help": "may be given several times, as all that follow"},
        "hidden": {"type": positive, "help": "H"},
        "batch": {"type": positive, "help": "B"},
        "steps": {"type": positive, "help": "T"},
        "dtype": {"choices": tuple(DTYPES), "help": "of the weights"},
    }
    for name, options in takes.items():
        about = f"{options.pop('help')} (default: {DEFAULTS[name]})"
        parser.add_argument(f"--{name}", action="append", help=about, **options)
    parser.add_argument("--input", type=positive, help="number of features, or of tokens (default: as --hidden)")
    parser.add_argument("--ids", action="store_true", help="token ids in place of dense features")
    parser.add_argument("--mode", choices=tuple(MODES), help="with or without a backward (default: both)")
    parser.add_argument("--model", metavar="RUN", help="in place of all these: the layer of a trained model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def run(
    options: argparse.Namespace,
    device: torch.device,
    model: tuple[Layer, Tensor] | None,
    say: Callable[[str], None] = print,
) -> int:
    """Measure, print the table and where it is kept.

    device: that of --device. model: the layer of --model and an example of its input.
    """
    problems = [model] if model is not None else list(_problems(options, device))
    mode = None if options.mode is None else MODES[options.mode]
    tuned = Tuned()
    with tqdm(total=len(problems) * (2 if mode is None else 1), unit="trial", leave=False, disable=None) as bar:

        def report(kind: str) -> None:
            bar.set_postfix_str(kind)
            bar.update()

        for layer, x in problems:
            tuned.update(tune(layer, x, training=mode, report=report))
    say(str(tuned))
    memory = verdicts.memory()
    kept = {kind for found in memory.everything().values() for kind in found}
    say(f"kept in {memory.path}" if kept >= tuned.keys() else f"not kept: {memory.path} cannot be written")
    return 0


def _problems(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[Layer, Tensor]]:
    given = (getattr(options, name) or [default] for name, default in DEFAULTS.items())
    for cell, hidden, batch, steps, dtype in itertools.product(*given):
        make, how = CELLS[cell]
        inputs = options.input or hidden
        layer = make(inputs, hidden, device=device, dtype=DTYPES[dtype], **how)
        kind = torch.int64 if options.ids else DTYPES[dtype]
        x = torch.zeros((), device=device, dtype=kind)
        yield layer, x.expand(steps, batch) if options.ids else x.expand(steps, batch, inputs)
