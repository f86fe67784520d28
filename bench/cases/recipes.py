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

README = Path(__file__).parents[2] / "README.md"
Names = dict[str, Any]


class Recipe(NamedTuple):
    """A block of the README that begins with a comment, its name.

    loop: the same numbers by one backward pass for each sample or task, through a layer with the block's weights.
    step: the ordinary backward pass of the whole batch. result: what the block has found.
    """

    name: str
    code: CodeType
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


def _each_slope(names: Names, layer: nn.Module) -> list[Tensor]:
    score, penalties = names["score"], []
    for row in names["x"].detach().unbind(1):
        one = row.unsqueeze(1).requires_grad_()
        (slope,) = torch.autograd.grad(score(layer(one)[0][-1]).sum(), one, create_graph=True)
        penalties.append((slope.norm() - 1).square())
    return _grad(torch.stack(penalties).mean(), layer)


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
    "per-sample gradients": (_each_sample, _step, _of_each_sample),
    "MAML": (_each_task, _step_of_tasks, _parameters),
    "gradient penalty": (_each_slope, _step_of_scores, _parameters),
}


def recipes() -> list[Recipe]:
    """Those that the README prints."""
    found = []
    for block in re.findall(r"^```python\n(# .*?)^```$", README.read_text("utf-8"), re.S | re.M):
        name = block.splitlines()[0].removeprefix("# ").split(":")[0]
        found.append(Recipe(name, compile(block, f"README.md, {name}", "exec"), *RECIPES[name]))
    return found
