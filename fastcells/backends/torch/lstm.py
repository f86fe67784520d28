"""The long short-term memory in torch's operators. x is the input projection, gates in torch's order i, f, g, o.

    i = sigmoid(x_i + h W_hi^T + b_hi)      f, o alike
    g = tanh(x_g + h W_hg^T + b_hg)
    c' = f * c + i * g
    h' = o * tanh(c')

Equations: torch.nn.LSTM. Backward: `d_c' += dh' o (1 - tanh(c')^2)`, then `d_i = d_c' g i (1 - i)`,
`d_f = d_c' c f (1 - f)`, `d_g = d_c' i (1 - g^2)`, `d_o = dh' tanh(c') o (1 - o)`, and `d_c = d_c' f`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch.loop import Loop, buffer_per_step, freeze_finished, own_output
from fastcells.spec import State


def factors(gates: Tensor, tanh_c: Tensor, c_before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the states' gradients are multiplied with at all steps. gates: [T, B, 4H].

    Returns those of dh' for d_c', [T, B, H], of d_c' for d_i, d_f and d_g and of dh' for d_o, [T, B, 4H], and of d_c'
    for d_c, [T, B, H].
    """
    i, f, g, o = gates.chunk(4, -1)
    c_factor = o * (1 - tanh_c * tanh_c)
    factor = torch.cat([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], -1)
    if mask is None:
        return c_factor, factor, f
    return c_factor * mask, factor * mask, torch.where(mask, f, 1)


class LSTMLoop(Loop):
    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        order, mask = inputs.steps.order(len(x)), inputs.steps.mask(len(x))
        h, c = inputs.state
        T, (B, H) = len(x), h.shape
        hidden = h.new_empty(T, B, H)
        gates_all, gates_t = buffer_per_step(save, T, B, 4 * H, like=h)  # i, f, g, o
        c_all = h.new_empty(T, B, H)
        tanh_all, tanh_t = buffer_per_step(save, T, B, H, like=h)  # tanh(c')
        h_t, c_t, x_t = hidden.unbind(0), c_all.unbind(0), (x if b_hh is None else x + b_hh).unbind(0)
        w = w_hh.t()
        for t in order:
            gates = torch.addmm(x_t[t], h, w, out=gates_t[t])
            gates[:, : 2 * H].sigmoid_()
            gates[:, 2 * H : 3 * H].tanh_()
            gates[:, 3 * H :].sigmoid_()
            torch.mul(gates[:, H : 2 * H], c, out=c_t[t])
            c_t[t].addcmul_(gates[:, :H], gates[:, 2 * H : 3 * H])
            torch.tanh(c_t[t], out=tanh_t[t])
            torch.mul(gates[:, 3 * H :], tanh_t[t], out=h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            freeze_finished(mask, t, c_t[t], c)
            h, c = h_t[t], c_t[t]
        return Trace(
            hidden, (h.clone(), c.clone()), (gates_all, c_all, tanh_all) if save else (), own_output(hidden, mask, save)
        )

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask = inputs.steps.order(T), inputs.steps.mask(T)
        gates, c_all, tanh_c = trace.saved
        H = c_all.shape[-1]
        c_before = PreviousStates(c_all, inputs.state[1], inputs.steps).cat
        c_factor, d_gates, f = factors(gates, tanh_c, c_before, mask)  # the gates' factors become their gradients
        d_ifg_t, d_o_t = d_gates[..., : 3 * H].unflatten(-1, (3, H)).unbind(0), d_gates[..., 3 * H :].unbind(0)
        d_h, d_c = d_last
        for t in reversed(order):
            d_h = d_h + d_hidden[t]
            d_c = torch.addcmul(d_c, d_h, c_factor[t])
            d_ifg_t[t].mul_(d_c.unsqueeze(1))
            d_o_t[t].mul_(d_h)
            d_before = d_gates[t] @ w_hh
            d_h = d_before if mask is None else torch.where(mask[t], d_before, d_h)
            d_c = d_c * f[t]
        return Gradients(d_gates, d_gates, (d_h, d_c))


LSTM_LOOP = LSTMLoop()
