"""The implementations `impl="triton"` (one launch for the sequence) and `impl="triton-step"` (one launch a step)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.torch.cell import Before, Gradients, State, TorchCell, Trace
from fastcells.backends.triton.operators import recurrence_backward, recurrence_forward
from fastcells.kernels.triton.rules import RULES


class TritonCell(TorchCell):
    """A cell whose recurrence runs in Triton; what has to be differentiated further runs in torch operators."""

    plain_operators = False

    def __init__(self, plain: TorchCell, path: str) -> None:
        self.plain = plain
        self.rule = RULES[plain.name]
        self.name, self.gates, self.states = plain.name, plain.gates, plain.states
        self.path = path  # "sequence" or "step"

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        return self.plain.step(x, state, w_hh, b_hh)

    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        return self.forward_on_ids(None, x, None, state, w_hh, b_hh, steps, mask, save)

    def forward_on_ids(
        self,
        ids: Tensor | None,  # [T, B]
        x: Tensor,  # [V, G*H] W_ih^T, or without ids [T, B, G*H] the input projection
        b_ih: Tensor | None,  # [G*H], with ids
        state: State,
        w_hh: Tensor,
        b_hh: Tensor | None,
        steps: range,
        mask: Tensor | None,
        save: bool,
    ) -> Trace:
        """`forward`, where the kernels gather the input projection themselves."""
        h0, c0 = _pair(state)
        hidden, cells, saved, h_n, c_n = recurrence_forward(
            x, h0, c0, w_hh, b_hh, _lengths(mask), self.rule.spec.name, self.path, steps.step < 0, save, ids, b_ih
        )
        return Trace(hidden, (h_n,) if c0 is None else (h_n, c_n), (cells, saved))

    def backward(
        self,
        d_hidden: Tensor,
        d_last: State,
        saved: tuple[Tensor, ...],
        hidden: Tensor,
        before: Before,
        state: State,
        w_hh: Tensor,
        steps: range,
        mask: Tensor | None,
    ) -> Gradients:
        h0, c0 = _pair(state)
        cells, gates = saved
        d_x, d_gates, d_h0, d_c0 = recurrence_backward(
            d_hidden,
            *_pair(d_last),
            h0,
            c0,
            w_hh,
            hidden,
            None if c0 is None else cells,
            gates if self.rule.spec.saved else None,
            _lengths(mask),
            self.rule.spec.name,
            self.path,
            steps.step < 0,
        )
        d_state = (d_h0,) if c0 is None else (d_h0, d_c0)
        return Gradients(d_x, d_x if self.rule.spec.same_gradient else d_gates, d_state)

    def weight_gradient(self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...]) -> Tensor:
        if self.rule.reset_hidden is None:
            return super().weight_gradient(d_gates, before, saved)
        reset = saved[1][:, :, 0] * before.whole
        return self.plain.weight_gradient(d_gates, before, (reset, reset, reset))


def _pair(state: State) -> tuple[Tensor, Tensor | None]:
    """(h, c), c being None for a cell without."""
    return (state[0], state[1]) if len(state) == 2 else (state[0], None)


def _lengths(mask: Tensor | None) -> Tensor | None:
    """int32 [B] from the mask [T, B, 1]."""
    return None if mask is None else mask.sum((0, 2), dtype=torch.int32)
