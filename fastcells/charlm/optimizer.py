"""The optimizer of a run, its state as plain tensors, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcells.charlm.presets import Config


def build_optimizer(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    """What `config.optimizer` names."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    # Adam's usual eps of 1e-8 is 0 in float16, and 0 / 0 follows. Fused, its update is one pass over memory: a tenth of
    # the time on a CPU, where the plain one costs as much as a layer's forward.
    return torch.optim.Adam(parameters, lr=config.lr, eps=1e-4 if config.dtype == "float16" else 1e-8, fused=True)


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by "parameter.name": "0.exp_avg", ..."""
    states = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, state in states.items() for name, value in state.items() if value is not None}


def restore_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Back from `state_tensors`; the groups' options stay those that the optimizer was built with."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
