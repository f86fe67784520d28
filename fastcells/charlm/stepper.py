"""One character in, the scores of the next one out: the model as text generation uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells import streaming
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
    """A float32 model on the CPU: one call of C for each layer, as `layer.step` makes them, one for the scores."""

    def __init__(self, model: CharLM) -> None:
        layer = model.layer
        self.output, self.tied = model.output, model.tied
        zeros = layer.weight_hh_l0.new_zeros(layer.num_layers, 1, layer.hidden_size)
        # Detached: each check of a Parameter, a subclass, takes longer.
        weights = [w.detach() for w in layer._weights()]
        self.stack = streaming.Stack(layer, weights, (zeros,) * layer._spec().num_states)

    def __call__(self, token: int) -> Tensor:
        """Scores [V] of the character after `token`."""
        h = self.stack(self.output.weight[token].detach() if self.tied else token)
        return native.matvec(self.output.weight, h, self.output.bias)


def stepper(model: CharLM) -> ModelStepper | CStepper:
    """The fastest stepper that can run `model`."""
    return CStepper(model) if _in_c(model.layer) else ModelStepper(model)


@torch.no_grad()
def _in_c(layer: Layer) -> bool:
    token = torch.zeros(1, dtype=torch.int64, device=layer.weight_hh_l0.device)
    return not layer.bidirectional and streaming.in_c(layer, layer._weights(), token, True, 1, None)


@torch.no_grad()
def choose(layer: Layer) -> Choice:
    """Which implementation steps through a model with this layer, and why."""
    w_ih, w_hh = layer.weight_ih_l0, layer.weight_hh_l0
    if not _in_c(layer):
        return explain(layer, torch.zeros(1, dtype=torch.int64, device=w_hh.device))["l0"]
    call = Call("cpu", layer._spec(), True, 1, 1, w_ih, w_hh)
    return CPU.choose(call, f"a step of each layer in C with {native.instruction_set()} instructions")
