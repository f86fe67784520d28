"""The README's recipes of gradients, as they are printed there, and the loops that they stand in for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastcells

README = Path(__file__).parents[2] / "README.md"
Names = dict[str, Any]


class Recipe(NamedTuple):
    """A block of the README that begins with a comment, its name.

    loop: the same numbers by a loop over samples, tasks or time steps, with a layer's weights.
    step: the ordinary backward pass of the whole batch. result: what the block has found.
    """

    name: str
    code: CodeType
    over: str  # what the loop goes over
    loop: Callable[[Names, nn.Module], list[Tensor]]
    step: Callable[[Names, nn.Module], list[Tensor]]
    result: Callable[[Names], list[Tensor]]

    def run(self) -> Names:
        """Execute the block. Returns its names."""
        names: Names = {}
        exec(self.code, names)
        return names


def _loss(layer: nn.Module, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    out, _ = functional_call(layer, dict(params), (x,))
    return (out - y).square().mean()


def _grad(loss: Tensor, layer: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(layer.parameters())))


def _each_sample(names: Names, layer: nn.Module) -> list[Tensor]:
    x, y, params = names["x"], names["y"], dict(layer.named_parameters())
    rows = [_grad(_loss(layer, params, x[:, i], y[:, i]), layer) for i in range(x.shape[1])]
    return [torch.stack(row) for row in zip(*rows, strict=True)]


def _each_task(names: Names, layer: nn.Module) -> list[Tensor]:
    params, total = dict(layer.named_parameters()), []
    for x, y, x_new, y_new in zip(names["x"], names["y"], names["x_new"], names["y_new"], strict=True):
        inner = torch.autograd.grad(_loss(layer, params, x, y), list(params.values()), create_graph=True)
        adapted = {name: p - 0.1 * g for (name, p), g in zip(params.items(), inner, strict=True)}
        total.append(_loss(layer, adapted, x_new, y_new))
    return _grad(torch.stack(total).mean(), layer)


def _slope_by_steps(names: Names, layer: nn.Module) -> list[Tensor]:
    """One GRUCell a step: what people write where the layer has no second derivative, as cuDNN's has not."""
    cell = (fastcells.GRUCell if isinstance(layer, fastcells.GRU) else nn.GRUCell)(64, 64)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(layer, f"{name}_l0"))
    x, h = names["x"].detach().requires_grad_(), None
    for step in x.unbind():
        h = cell(step, h)
    (slope,) = torch.autograd.grad(names["score"](h).sum(), x, create_graph=True)
    return _grad((slope.norm(dim=(0, 2)) - 1).square().mean(), layer)


def _step(names: Names, layer: nn.Module) -> list[Tensor]:
    return _grad((layer(names["x"])[0] - names["y"]).square().mean(), layer)


def _step_of_tasks(names: Names, layer: nn.Module) -> list[Tensor]:
    x, y = (names[name].transpose(0, 1).flatten(1, 2) for name in ("x", "y"))
    return _grad((layer(x)[0] - y).square().mean(), layer)


def _step_of_scores(names: Names, layer: nn.Module) -> list[Tensor]:
    return _grad(names["score"](layer(names["x"])[0][-1]).sum(), layer)


def _parameters(names: Names) -> list[Tensor]:
    return [p.grad for p in names["gru"].parameters()]


def _of_each_sample(names: Names) -> list[Tensor]:
    return list(names["each"].values())


RECIPES = {
    "per-sample gradients": ("sequences", _each_sample, _step, _of_each_sample),
    "MAML": ("tasks", _each_task, _step_of_tasks, _parameters),
    "gradient penalty": ("time steps, by `GRUCell`", _slope_by_steps, _step_of_scores, _parameters),
}


def blocks() -> dict[str, CodeType]:
    """The README's blocks of Python that begin with a comment, by what that says before its colon."""
    found = re.findall(r"^```python\n(# ([^:\n]+): .*?)^```$", README.read_text("utf-8"), re.S | re.M)
    return {name: compile(text, f"README.md, {name}", "exec") for text, name in found}


def recipes() -> list[Recipe]:
    """Those of gradients that the README prints."""
    return [Recipe(name, code, *RECIPES[name]) for name, code in blocks().items() if name in RECIPES]
