"""The optimizer of a run: in float32 whatever the model computes in; its state as plain tensors, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcells.charlm.presets import Config

MOMENTS = {"sgd": set[str](), "adam": {"step", "exp_avg", "exp_avg_sq"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


class Optimizer:
    """One update of a model's parameters from their gradients.

    Parameters of 16 bits have master copies in float32, which are updated and rounded: 1 + 0.001 is 1 in bfloat16.
    In float16 the loss is scaled, so that small gradients do not vanish; a step whose gradients overflow is left out.
    """

    def __init__(self, parameters: list[nn.Parameter], config: Config, device: torch.device) -> None:
        self.parameters, self.config = parameters, config
        half = config.dtype in ("float16", "bfloat16")
        self.masters = [nn.Parameter(p.detach().float()) for p in parameters] if half else parameters
        self.torch = _optimizer(self.masters, config)
        self.order = [p for group in self.torch.param_groups for p in group["params"]]  # as its state counts them
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to the parameters'."""
        self.scaler.scale(loss).backward()

    def step(self, rate: float) -> None:
        """Update by the gradients that were added since the last step, at this learning rate, and clear them."""
        for group in self.torch.param_groups:
            group["lr"] = rate
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters, strict=True):
                master.grad = None if p.grad is None else p.grad.float()
                p.grad = None
        self.scaler.unscale_(self.torch)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.masters, self.config.clip)
        self.scaler.step(self.torch)
        self.scaler.update()
        self.torch.zero_grad()
        if self.masters is not self.parameters:
            with torch.no_grad():
                for master, p in zip(self.masters, self.parameters, strict=True):
                    p.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by "parameter.name" ("0.exp_avg"), master weights, and the scale of the loss."""
        states = self.torch.state_dict()["state"]
        found = {
            f"{i}.{name}": value for i, state in states.items() for name, value in state.items() if value is not None
        }
        if self.masters is not self.parameters:
            found |= {f"{i}.master": master.detach() for i, master in enumerate(self.masters)}
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            found["scale.now"] = torch.tensor([scale["scale"], scale["_growth_tracker"]], dtype=torch.float64)
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Back from `state`; rates and decays stay those that the optimizer was built with.

        Raises:
            ValueError, KeyError: it is not the state of such an optimizer.
        """
        states: dict[int, dict[str, Tensor]] = {}
        tensors = dict(tensors)
        if self.scaler.is_enabled():
            scale, tracker = tensors.pop("scale.now").tolist()
            if not 0 < scale < float("inf"):
                raise ValueError(f"the loss's scale is {scale}")
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        if self.masters is not self.parameters:
            for i, master in enumerate(self.masters):
                master.data.copy_(tensors.pop(f"{i}.master"))
        for key, tensor in tensors.items():
            index, name = key.split(".", 1)
            states.setdefault(int(index), {})[name] = tensor
        for i, state in states.items():
            shapes = {name: t.shape for name, t in state.items() if name != "step"}
            if set(state) != MOMENTS[self.config.optimizer] or set(shapes.values()) - {self.order[i].shape}:
                raise ValueError(f"the state of parameter {i} is {shapes}")
        groups = self.torch.state_dict()["param_groups"]
        self.torch.load_state_dict({"state": states, "param_groups": groups})


def _optimizer(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    # Biases do not decay: they hardly overfit, and have to reach where they belong.
    groups = [
        {"params": [p for p in parameters if (p.dim() > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    # Fused, its update is one pass over memory: a tenth of the time on a CPU, where the plain one costs as much as a
    # layer's forward.
    return kind(groups, lr=config.lr, fused=True)
