"""Tensors made up for a trial: a layer in the shape of a call, the way it is run, and what is exact."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells import both_directions, one_direction
from fastcells.autograd import unroll
from fastcells.backends.base import IN_ONE_CALL, Call, Choice, LayerWeights, Steps
from fastcells.backends.torch.aten import aten
from fastcells.spec import RecurrentWeights, State
from fastcells.token_ids import gather_rows, one_hot

SEED = 20261126
RESETS = 0.1  # of all steps


class Problem:
    """Inputs, weights and cotangents of one call, with random numbers of its own: the user's generator is left alone.

    Results are a list, by `names`: the outputs [T, B, H], of two directions side by side, the final states, each
    [directions, B, H], and with `training` the gradients of the input (if it is not ids), of the initial states and of
    all weights.
    """

    def __init__(self, call: Call, steps: int, training: bool, seed: int = SEED) -> None:
        """steps: T, which may be less than the call's."""
        self.spec, self.training, self.directions = call.spec, training, call.directions
        self.device, self.dtype = call.w_hh.device, call.dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)
        (rows, columns), inputs, B = call.w_hh.shape, call.w_ih.shape[1], call.B
        hidden = rows // call.spec.num_gates
        widths = [columns if s == "h" else hidden for s in call.spec.states]
        self.x: Tensor
        if call.token_ids:
            self.x = torch.randint(inputs, (steps, B), generator=self._generator, device=self.device)
        else:
            self.x = self._random(steps, B, inputs)
        self.state: State = tuple(self._random(self.directions, B, width) for width in widths)
        shapes = [(rows, inputs), (rows, columns), (rows,), (rows,)]
        shapes += [(columns, hidden)] if "proj_size" in call.options else []
        # Flat, as torch's layers have them, and the same number for each direction.
        self.weights = [self._random(*shape, scale=hidden**-0.5) for _ in range(self.directions) for shape in shapes]
        self.steps = Steps(lengths=self._lengths(call, steps), resets=self._resets(call, steps))
        self.d_outs = [self._random(steps, B, self.directions * columns), *(self._random(*s.shape) for s in self.state)]

    @property
    def names(self) -> list[str]:
        """Of the results."""
        weights = ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"][: len(self.weights) // self.directions]
        weights += [f"{name}_reverse" for name in weights] if self.directions == 2 else []
        leaves = [*(["x"] if self.x.is_floating_point() else []), *(f"{s}0" for s in self.spec.states), *weights]
        outs = ["out", *(f"{s}_n" for s in self.spec.states)]
        return outs + ([f"d_{name}" for name in leaves] if self.training else [])

    def run(self, choice: Choice) -> list[Tensor]:
        """Everything, by an implementation."""
        if not self.training:
            with torch.no_grad():
                return self._outs(choice, self.x, self.state, self.weights)
        leaves = self._leaves(self.dtype)
        return self._with_gradients(self._outs(choice, *leaves), *leaves)

    def exact(self) -> list[Tensor]:
        """Everything, step by step in float64, by the cell's equations."""
        with torch.set_grad_enabled(self.training):
            x, state, weights = leaves = self._leaves(torch.float64)
            found = []
            for i, w in enumerate(self._layers(weights)):
                x_proj = gather_rows(x, w.w_ih, w.b_ih) if x.dtype == torch.int64 else F.linear(x, w.w_ih, w.b_ih)
                steps = self.steps._replace(reverse=i == 1)
                found.append(unroll(self.spec, x_proj, tuple(s[i] for s in state), w.recurrent, steps))
            outs = self._joined(found)
        return self._with_gradients(outs, *leaves) if self.training else outs

    def _outs(self, choice: Choice, x: Tensor, state: State, weights: list[Tensor]) -> list[Tensor]:
        """As a layer has it run: by one operator of ATen's, or direction by direction, or both at once."""
        if choice.path in IN_ONE_CALL:
            x = x if x.is_floating_point() else one_hot(x, weights[0].shape[1], weights[0])
            out, last = aten(self.spec.name, x, state, weights, True, bidirectional=self.directions == 2)
            return [out, *last]
        choices, layers = both_directions.together([choice] * self.directions), self._layers(weights)
        if choices[0].directions == 2:
            out, last = both_directions.run(choices[0], self.spec, x, state, layers, self.steps)
            return [out, *last]
        found = []
        for i, w in enumerate(layers):
            own = tuple(s[i] for s in state)
            found.append(one_direction.run(choice, self.spec, x, own, w, self.steps._replace(reverse=i == 1)))
        return self._joined(found)

    def _joined(self, found: list[tuple[Tensor, State]]) -> list[Tensor]:
        outs, ends = zip(*found, strict=True)
        return [torch.cat(outs, -1), *(torch.stack(s) for s in zip(*ends, strict=True))]

    def _layers(self, weights: list[Tensor]) -> list[LayerWeights]:
        """Each direction's."""
        count, layers = len(weights) // self.directions, []
        for i in range(self.directions):
            w_ih, w_hh, b_ih, b_hh, *w_hr = weights[i * count : (i + 1) * count]
            recurrent = RecurrentWeights(w_hh, b_hh, w_hr[0] if w_hr else None)
            layers.append(LayerWeights(w_ih, b_ih, recurrent))
        return layers

    def _leaves(self, dtype: torch.dtype) -> tuple[Tensor, State, list[Tensor]]:
        """Copies that gradients are asked for."""

        def leaf(t: Tensor) -> Tensor:
            return t.detach().to(dtype).requires_grad_(self.training)

        x = leaf(self.x) if self.x.is_floating_point() else self.x
        return x, tuple(map(leaf, self.state)), list(map(leaf, self.weights))

    def _with_gradients(self, outs: list[Tensor], x: Tensor, state: State, weights: list[Tensor]) -> list[Tensor]:
        leaves = [t for t in (x, *state, *weights) if t.requires_grad]
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
