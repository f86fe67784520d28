"""`fastcells.tune`: trials ahead of time, for a model before torch.compile or a CUDA graph takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fastcells.cells import Cell
from fastcells.stack import Layer
from fastcells.tuning import verdicts
from fastcells.tuning.kind import Kind
from fastcells.tuning.memory import Verdict


class Tuned(dict[str, Verdict]):
    """What `tune` measured: a verdict for each kind of call. As text a table, a line for each candidate."""

    def __str__(self) -> str:
        rows = [("kind of call", "candidate", "error / allowed", "us", "")]
        for kind, verdict in self.items():
            rows += rows_of(kind, verdict)
        if len(rows) == 1:
            return "nothing was measured: one implementation alone can run these calls"
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = (
            f"{kind:{widths[0]}}  {name:{widths[1]}}  {error:>{widths[2]}}  {us:>{widths[3]}}  {note}"
            for kind, name, error, us, note in rows
        )
        return "\n".join(line.rstrip() for line in lines)


def rows_of(kind: str, verdict: Verdict) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each candidate: the fastest first, what is out last."""
    for name in sorted(verdict.microseconds, key=lambda name: verdict.microseconds[name]):
        error, us = f"{verdict.errors.get(name, 0.0):.2f}", f"{verdict.microseconds[name]:,.0f}"
        yield kind, name, error, us, "chosen" if name == verdict.chosen else ""
        kind = ""
    for name, reason in verdict.out.items():
        yield kind, name, "", "", f"out: {reason}"
        kind = ""


def tune(
    module: nn.Module, example: Any, *, training: bool | None = None, report: Callable[[str], None] | None = None
) -> Tuned:
    """Measure which implementation is right and fastest for each layer that `module(example)` runs, and remember it.

    For layers of this package with `impl="auto"`; the model need not consist of these alone. Call it before
    torch.compile or the capture of a CUDA graph, under which nothing can be measured. The verdicts go to the user's
    cache folder (or FASTCELLS_CACHE_DIR) and hold for the same device and versions, in other processes too.

    module: any module; its parameters, buffers, gradients and torch's random state stay as they are.
    example: what it would be called with: an input, or a tuple of arguments. Only shapes and dtypes matter.
    training: whether a backward will follow; None measures both. report: called with each kind of call, once measured.

    Returns:
        The verdicts by kind of call, as `Tuned`; `print(tuned)` shows candidates, errors and times.

    Raises:
        What `module(example)` raises.
    """
    tuned = Tuned()

    def found(kind: Kind, verdict: Verdict) -> None:
        tuned[str(kind)] = verdict
        if report is not None:
            report(str(kind))

    is_one = not isinstance(example, tuple) or isinstance(example, PackedSequence)  # which is a tuple too
    arguments = (example,) if is_one else example
    modes = (False, True) if training is None else (training,)
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with verdicts.tuning(found), torch.random.fork_rng(list(devices)):
        for mode in modes:
            with torch.set_grad_enabled(mode):
                if isinstance(module, Layer | Cell) and len(arguments) == 1:
                    module._explain(arguments[0])
                else:
                    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
                    torch.func.functional_call(module, buffers, arguments)
    return tuned
