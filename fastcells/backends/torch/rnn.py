"""The simple (Elman) RNN: `h' = act(x + h W_hh^T + b_hh)`, x being the input projection; act is tanh or relu.

Equations: torch.nn.RNN. Backward: with `a = act'(...)`, written in terms of h',
`d_x = dh' * a`, `dh = d_x W_hh`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch.loop import Loop, freeze_finished, own_output
from fastcells.spec import State


class ElmanLoop(Loop):
    def __init__(self, activate_: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
        self.activate_ = activate_  # in place
        self.slope = slope  # the activation's derivative as a function of its value

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        order, mask = inputs.steps.order(len(x)), inputs.steps.mask(len(x))
        (h,) = inputs.state
        hidden = h.new_empty(len(x), *h.shape)
        x_t = (x if b_hh is None else x + b_hh).unbind(0)
        h_t = hidden.unbind(0)
        w = w_hh.t()
        for t in order:
            torch.addmm(x_t[t], h, w, out=h_t[t])
            self.activate_(h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(hidden, (h.clone(),), (), own_output(hidden, mask, save))

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask = inputs.steps.order(T), inputs.steps.mask(T)
        slope = self.slope(trace.hidden)
        if mask is not None:
            slope = slope * mask
        d_gates = torch.empty_like(slope)
        d_h = d_last[0]
        slope_t, d_hidden_t, d_gates_t = slope.unbind(0), d_hidden.unbind(0), d_gates.unbind(0)
        for t in reversed(order):
            d_h = d_h + d_hidden_t[t]
            torch.mul(d_h, slope_t[t], out=d_gates_t[t])
            d_before = d_gates_t[t] @ w_hh
            d_h = d_before if mask is None else torch.where(mask[t], d_before, d_h)
        return Gradients(d_gates, d_gates, (d_h,))


RNN_TANH_LOOP = ElmanLoop(torch.tanh_, lambda h: 1 - h * h)
RNN_RELU_LOOP = ElmanLoop(torch.relu_, lambda h: 1 - (h <= 0).to(h.dtype))
