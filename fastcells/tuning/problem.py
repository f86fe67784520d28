"""Tensors made up for a trial: one layer and direction in the shape of a call, the way it is run, and what is exact."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells import one_direction
from fastcells.autograd import unroll
from fastcells.backends.base import Call, Choice, LayerWeights, Steps
from fastcells.spec import RecurrentWeights, State
from fastcells.token_ids import gather_rows

SEED = 20261126
RESETS = 0.1  # of all steps


class Problem:
    """Inputs, weights and cotangents of one call, with random numbers of its own: the user's generator is left alone.

    Results are a list, by `names`: the outputs [T, B, H], the final states, and with `training` the gradients of the
    input (if it is not ids), of the initial states and of all weights.
    """

    def __init__(self, call: Call, steps: int, training: bool) -> None:
        """steps: T, which may be less than the call's."""
        self.spec, self.training = call.spec, training
        self.device, self.dtype = call.w_hh.device, call.dtype
        self._generator = torch.Generator(self.device).manual_seed(SEED)
        (rows, columns), inputs, B = call.w_hh.shape, call.w_ih.shape[1], call.B
        hidden = rows // call.spec.num_gates
        projected = "proj_size" in call.options
        scale = hidden**-0.5
        self.x: Tensor
        if call.token_ids:
            self.x = torch.randint(inputs, (steps, B), generator=self._generator, device=self.device)
        else:
            self.x = self._random(steps, B, inputs)
        self.state: State = tuple(self._random(B, columns if s == "h" else hidden) for s in call.spec.states)
        w_hr = self._random(columns, hidden, scale=scale) if projected else None
        recurrent = RecurrentWeights(
            self._random(rows, columns, scale=scale), self._random(rows, scale=scale), w_hr
        )  # fmt: skip
        self.weights = LayerWeights(
            self._random(rows, inputs, scale=scale), self._random(rows, scale=scale), recurrent
        )  # fmt: skip
        self.steps = Steps(lengths=self._lengths(call, steps), resets=self._resets(call, steps))
        self.d_outs = [self._random(steps, B, columns), *(self._random(*s.shape) for s in self.state)]

    @property
    def names(self) -> list[str]:
        """Of the results."""
        w = self.weights.recurrent
        weights = ["w_ih", "b_ih", "w_hh", "b_hh"] + (["w_hr"] if w.w_hr is not None else [])
        leaves = [*(["x"] if self.x.is_floating_point() else []), *(f"{s}0" for s in self.spec.states), *weights]
        outs = ["out", *(f"{s}_n" for s in self.spec.states)]
        return outs + ([f"d_{name}" for name in leaves] if self.training else [])

    def run(self, choice: Choice) -> list[Tensor]:
        """Everything, by an implementation."""
        if not self.training:
            with torch.no_grad():
                out, last = one_direction.run(choice, self.spec, self.x, self.state, self.weights, self.steps)
            return [out, *last]
        x, state, weights = self._leaves(self.dtype)
        out, last = one_direction.run(choice, self.spec, x, state, weights, self.steps)
        return self._with_gradients([out, *last], x, state, weights)

    def exact(self) -> list[Tensor]:
        """Everything, step by step in float64, by the cell's equations."""
        with torch.set_grad_enabled(self.training):
            x, state, weights = self._leaves(torch.float64)
            w_ih, b_ih, recurrent = weights
            x_proj = gather_rows(x, w_ih, b_ih) if x.dtype == torch.int64 else F.linear(x, w_ih, b_ih)
            out, last = unroll(self.spec, x_proj, state, recurrent, self.steps)
        outs = [out, *last]
        return self._with_gradients(outs, x, state, weights) if self.training else outs

    def _leaves(self, dtype: torch.dtype) -> tuple[Tensor, State, LayerWeights]:
        """Copies that gradients are asked for."""

        def leaf(t: Tensor) -> Tensor:
            return t.detach().to(dtype).requires_grad_(self.training)

        def optional(t: Tensor | None) -> Tensor | None:
            return None if t is None else leaf(t)

        w_ih, b_ih, (w_hh, b_hh, w_hr, _) = self.weights
        recurrent = RecurrentWeights(leaf(w_hh), optional(b_hh), optional(w_hr))
        x = leaf(self.x) if self.x.is_floating_point() else self.x
        return x, tuple(map(leaf, self.state)), LayerWeights(leaf(w_ih), optional(b_ih), recurrent)

    def _with_gradients(self, outs: list[Tensor], x: Tensor, state: State, weights: LayerWeights) -> list[Tensor]:
        w_ih, b_ih, (w_hh, b_hh, w_hr, _) = weights
        leaves = [t for t in (x, *state, w_ih, b_ih, w_hh, b_hh, w_hr) if t is not None and t.requires_grad]
        gradients = torch.autograd.grad(outs, leaves, [d.to(o.dtype) for d, o in zip(self.d_outs, outs, strict=True)])
        return [t.detach() for t in (*outs, *gradients)]

    def _random(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device=self.device, dtype=torch.float32)
        return (values * scale).to(self.dtype)

    def _lengths(self, call: Call, steps: int) -> Tensor | None:
        if "lengths" not in call.options:
            return None
        lengths = torch.randint(1, steps + 1, (call.B,), generator=self._generator, device=self.device)
        lengths[:1] = steps
        return lengths.int()

    def _resets(self, call: Call, steps: int) -> Tensor | None:
        if "resets" not in call.options:
            return None
        return torch.rand(steps, call.B, generator=self._generator, device=self.device, dtype=torch.float32) < RESETS
