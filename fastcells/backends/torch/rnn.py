"""The simple (Elman) RNN: `h' = act(x + h W_hh^T + b_hh)`, x being the input projection; act is tanh or relu.

Equations: torch.nn.RNN. Backward: with `a = act'(...)`, written in terms of h',
`d_x = dh' * a`, `dh = d_x W_hh`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcells.backends.torch.cell import Before, Gradients, State, TorchCell, Trace, hold, own_output


class ElmanCell(TorchCell):
    gates = 1

    def __init__(
        self,
        name: str,
        act: Callable[[Tensor], Tensor],
        act_: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor], Tensor],
    ) -> None:
        self.name = name
        self.act = act
        self.act_ = act_  # the same in place
        self.slope = slope  # act' as a function of act's value

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        return (self.act(x + torch.nn.functional.linear(state[0], w_hh, b_hh)),)

    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        (h,) = state
        hidden = h.new_empty(len(steps), *h.shape)
        x_t = (x if b_hh is None else x + b_hh).unbind(0)
        h_t = hidden.unbind(0)
        w = w_hh.t()
        for t in steps:
            torch.addmm(x_t[t], h, w, out=h_t[t])
            self.act_(h_t[t])
            hold(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(hidden, (h.clone(),), (), own_output(hidden, mask, save))

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
        slope = self.slope(hidden)
        if mask is not None:
            slope = slope * mask
        d_gates = torch.empty_like(slope)
        d_h = d_last[0]
        slope_t, d_hidden_t, d_gates_t = slope.unbind(0), d_hidden.unbind(0), d_gates.unbind(0)
        for t in reversed(steps):
            d_h = d_h + d_hidden_t[t]
            torch.mul(d_h, slope_t[t], out=d_gates_t[t])
            d_before = d_gates_t[t] @ w_hh
            d_h = d_before if mask is None else torch.where(mask[t], d_before, d_h)
        return Gradients(d_gates, d_gates, (d_h,))


RNN_TANH = ElmanCell("rnn_tanh", torch.tanh, torch.tanh_, lambda h: 1 - h * h)
RNN_RELU = ElmanCell("rnn_relu", torch.relu, torch.relu_, lambda h: 1 - (h <= 0).to(h.dtype))
