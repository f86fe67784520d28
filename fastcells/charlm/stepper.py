"""One character in, the scores of the next one out: the model as text generation uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Call, Choice
from fastcells.backends.cpu import native
from fastcells.backends.cpu.backend import CPU
from fastcells.charlm.model import CharLM, State
from fastcells.dispatch import explain
from fastcells.stack import Layer


class ModelStepper:
    """Any model: its own forward on a sequence of one."""

    def __init__(self, model: CharLM) -> None:
        self.model = model
        self.state: State | None = None

    def __call__(self, token: int) -> Tensor:
        """Scores [V] of the character after `token`, float32 on the CPU."""
        ids = torch.tensor([[token]], device=self.model.output.weight.device)
        logits, self.state = self.model(ids, self.state)
        return logits[0, -1].float().cpu()


class CStepper:
    """A float32 model on the CPU: one call of C for each layer, one for the scores."""

    def __init__(self, model: CharLM) -> None:
        layer = model.layer
        self.output, self.tied = model.output, model.tied
        self.cell = layer._spec().name
        states = layer._spec().num_states
        zeros = layer.weight_hh_l0.new_zeros(layer.hidden_size)
        self.states = [tuple(zeros.clone() for _ in range(states)) for _ in range(layer.num_layers)]
        self.weights = [
            tuple(getattr(layer, f"{name}_l{i}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            for i in range(layer.num_layers)
        ]

    def __call__(self, token: int) -> Tensor:
        """Scores [V] of the character after `token`."""
        x: Tensor | int = self.output.weight[token].detach() if self.tied else token
        for state, weights in zip(self.states, self.weights, strict=True):
            native.step_in_place(self.cell, x, state, weights)
            x = state[0]
        return native.matvec(self.output.weight, state[0], self.output.bias)


def stepper(model: CharLM) -> ModelStepper | CStepper:
    """The fastest stepper that can run `model`."""
    return CStepper(model) if choose(model.layer).impl == "cpu" else ModelStepper(model)


def choose(layer: Layer) -> Choice:
    """Which implementation steps through a model with this layer, and why."""
    w_ih, w_hh = layer.weight_ih_l0, layer.weight_hh_l0
    call = Call("cpu", layer._spec(), True, 1, 1, w_ih, w_hh)
    if layer.bidirectional or layer.impl not in ("auto", "cpu") or CPU.obstacle(call) is not None:
        return explain(layer, torch.zeros(1, dtype=torch.int64, device=w_hh.device))["l0"]
    return CPU.choose(call, f"a step of each layer in C with {native.instruction_set()} instructions")
