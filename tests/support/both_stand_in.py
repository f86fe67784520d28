"""A backend for any CPU that runs both directions of a layer at once, as kernels do that need a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcells.autograd import projection
from fastcells.backends.base import Call, Choice, Gradients, Inputs, PreviousStates, StepInput, Steps, Trace
from fastcells.backends.torch.backend import TorchBackend
from fastcells.spec import CellSpec, RecurrentWeights, State


class BothStandIn(TorchBackend):
    """torch's loops, each direction's on its part of what kernels would get. `launches`: what ran so far."""

    name = "gluon"
    may_unroll = False
    takes_ids = True

    def __init__(self) -> None:
        self.launches: list[str] = []

    def choose(self, call: Call | None, reason: str) -> Choice:
        return Choice(self.name, "resident", reason, backend=self)

    def must_unroll(self, choice: Choice, spec: CellSpec, weights: RecurrentWeights, steps: Steps) -> bool:
        return False

    def both(self, forward: Choice, reverse: Choice) -> Choice | None:
        return Choice(self.name, "both directions", forward.reason, backend=self, directions=2)

    def forward_both(self, choice: Choice, spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
        self.launches.append("forward")
        traces = [self.forward(choice, spec, one, save) for one in _each(inputs)]
        saved = zip(*(trace.saved for trace in traces), strict=True)
        return Trace(
            torch.stack([trace.hidden for trace in traces]),
            tuple(torch.stack(s) for s in zip(*(trace.last for trace in traces), strict=True)),
            tuple(None if pair[0] is None else torch.stack(pair) for pair in saved),
        )

    def backward_both(
        self, choice: Choice, spec: CellSpec, inputs: Inputs, trace: Trace, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        self.launches.append("backward")
        found = []
        for i, one in enumerate(_each(inputs)):
            own = Trace(trace.hidden[i], (), _of(i, trace.saved))
            previous = PreviousStates(own.hidden, one.state[0], one.steps)
            found.append(self.backward(choice, spec, one, own, previous, d_hidden[i], _of(i, d_last)))
        d_x, d_gates, d_state, *_ = zip(*found, strict=True)
        return Gradients(
            torch.stack(d_x), torch.stack(d_gates), tuple(torch.stack(s) for s in zip(*d_state, strict=True))
        )


def _each(inputs: Inputs) -> list[Inputs]:
    """One direction's after the other's; the kernels' launchers want x as W_ih^T in one piece, given ids."""
    (x, ids, b_ih), state, weights, steps = inputs
    assert not steps.reverse
    assert ids is None or x.mT.is_contiguous()
    given = [StepInput(x[i], ids, None if b_ih is None else b_ih[i]) for i in (0, 1)]
    return [
        Inputs(
            StepInput(projection(given[i])),
            _of(i, state),
            RecurrentWeights(*_of(i, weights[:2])),
            steps._replace(reverse=i == 1),
        )
        for i in (0, 1)
    ]


def _of(i: int, tensors: Any) -> tuple[Any, ...]:
    return tuple(None if t is None else t[i] for t in tensors)
