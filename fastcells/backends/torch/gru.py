"""The gated recurrent unit, in both variants. x is the input projection, gates in torch's order r, z, n.

    r  = sigmoid(x_r + h W_hr^T + b_hr)
    z  = sigmoid(x_z + h W_hz^T + b_hz)
    n  = tanh(x_n + r * (h W_hn^T + b_hn))     reset-after: torch.nn.GRU, cuDNN
    n  = tanh(x_n + (r * h) W_hn^T + b_hn)     reset-before: Cho et al. 2014, equation 8
    h' = n + z * (h - n)

Backward, the same in both: `d_n = dh' (1 - z) (1 - n^2)`, `d_z = dh' (h - n) z (1 - z)`, `dh` gets `dh' z`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch.loop import Loop, buffer_per_step, freeze_finished, own_output
from fastcells.spec import State


def _common_factors(z: Tensor, n: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What dh' is multiplied with for d_n, d_z and the part of dh that goes around the gates: each [T, B, H]."""
    n_factor = (1 - z) * (1 - n * n)
    z_factor = (before - n) * z * (1 - z)
    if mask is None:
        return n_factor, z_factor, z
    return n_factor * mask, z_factor * mask, torch.where(mask, z, 1)


def factors(gates: Tensor, n: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """What dh' is multiplied with at all steps of a reset-after GRU. gates: [T, B, 3H], r, z and what r multiplies.

    Returns those for d_r, d_z, what r multiplies, d_n, and the part of dh that goes around the gates: each [T, B, H].
    """
    r, z, h_n = gates.chunk(3, -1)
    n_factor, z_factor, around = _common_factors(z, n, before, mask)
    h_n_factor = n_factor * r
    return h_n_factor * h_n * (1 - r), z_factor, h_n_factor, n_factor, around


class GRUResetAfterLoop(Loop):
    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        order, mask = inputs.steps.order(len(x)), inputs.steps.mask(len(x))
        (h,) = inputs.state
        T, (B, H) = len(x), h.shape
        hidden = h.new_empty(T, B, H)
        gates_all, gates_t = buffer_per_step(save, T, B, 3 * H, like=h)  # h W_hh^T + b_hh, then (r, z, h_n)
        n_all, n_t = buffer_per_step(save, T, B, H, like=h)
        h_t, x_t = hidden.unbind(0), x.unbind(0)
        w = w_hh.t()
        for t in order:
            gates, n = gates_t[t], n_t[t]
            if b_hh is None:
                torch.mm(h, w, out=gates)
            else:
                torch.addmm(b_hh, h, w, out=gates)
            rz = gates[:, : 2 * H]
            rz.add_(x_t[t][:, : 2 * H]).sigmoid_()
            torch.addcmul(x_t[t][:, 2 * H :], gates[:, :H], gates[:, 2 * H :], out=n).tanh_()
            torch.lerp(n, h, gates[:, H : 2 * H], out=h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(hidden, (h.clone(),), (gates_all, n_all) if save else (), own_output(hidden, mask, save))

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask = inputs.steps.order(T), inputs.steps.mask(T)
        gates, n = trace.saved
        T, B, H = n.shape
        *factor, n_factor, around = factors(gates, n, previous.cat, mask)
        d_gates = torch.stack(factor, 2)  # they become the gradients with respect to h W_hh^T + b_hh
        d_h = d_last[0] + d_hidden[order[-1]]
        d_h_all = torch.empty_like(n)
        around_t, d_gates_t = around.unbind(0), d_gates.unbind(0)
        d_hidden_t, d_h_t = d_hidden.unbind(0), d_h_all.unbind(0)
        for i in range(T - 1, -1, -1):
            t = order[i]
            d_h_t[t].copy_(d_h)
            d_gates_t[t].mul_(d_h.unsqueeze(1))
            d_h = d_h * around_t[t] if i == 0 else torch.addcmul(d_hidden_t[order[i - 1]], d_h, around_t[t])
            d_h.addmm_(d_gates_t[t].view(B, 3 * H), w_hh)
        d_gates = d_gates.view(T, B, 3 * H)
        d_x = torch.cat([d_gates[..., : 2 * H], n_factor * d_h_all], -1)
        return Gradients(d_x, d_gates, (d_h,))


class GRUResetBeforeLoop(Loop):
    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        order, mask = inputs.steps.order(len(x)), inputs.steps.mask(len(x))
        (h,) = inputs.state
        T, (B, H) = len(x), h.shape
        hidden = h.new_empty(T, B, H)
        rz_all, rz_t = buffer_per_step(save, T, B, 2 * H, like=h)
        n_all, n_t = buffer_per_step(save, T, B, H, like=h)
        reset_hidden_all, reset_hidden_t = buffer_per_step(save, T, B, H, like=h)  # r * h
        h_t, x_t = hidden.unbind(0), (x if b_hh is None else x + b_hh).unbind(0)
        w_rz, w_n = w_hh[: 2 * H].t(), w_hh[2 * H :].t()
        for t in order:
            rz, n, reset_hidden = rz_t[t], n_t[t], reset_hidden_t[t]
            torch.addmm(x_t[t][:, : 2 * H], h, w_rz, out=rz).sigmoid_()
            torch.mul(rz[:, :H], h, out=reset_hidden)
            torch.addmm(x_t[t][:, 2 * H :], reset_hidden, w_n, out=n).tanh_()
            torch.lerp(n, h, rz[:, H:], out=h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(
            hidden, (h.clone(),), (rz_all, n_all, reset_hidden_all) if save else (), own_output(hidden, mask, save)
        )

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask = inputs.steps.order(T), inputs.steps.mask(T)
        rz, n, _ = trace.saved
        r, z = rz.chunk(2, -1)
        n_factor, z_factor, around = _common_factors(z, n, previous.cat, mask)
        r_factor = previous.cat * r * (1 - r)
        T, B, H = n.shape
        # oneDNN's products of bfloat16 with AMX read beyond the rows that they are given: what is there must be finite.
        d_gates = n.new_zeros(T, B, 3 * H)
        w_rz, w_n = w_hh[: 2 * H], w_hh[2 * H :]
        d_h = d_last[0]
        for t in reversed(order):
            d_h = d_h + d_hidden[t]
            d_r, d_z, d_n = d_gates[t].chunk(3, -1)
            torch.mul(d_h, n_factor[t], out=d_n)
            torch.mul(d_h, z_factor[t], out=d_z)
            d_reset_hidden = d_n @ w_n
            torch.mul(d_reset_hidden, r_factor[t], out=d_r)
            d_h = torch.addcmul(d_h * around[t], d_reset_hidden, r[t]).addmm_(d_gates[t, :, : 2 * H], w_rz)
        return Gradients(d_gates, d_gates, (d_h,))

    def operands(self, gates: int, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        h, reset_hidden = previous.cat, trace.saved[2]
        H = h.shape[-1]
        return [(2 * H, h), (H, reset_hidden)]


GRU_RESET_AFTER_LOOP = GRUResetAfterLoop()
GRU_RESET_BEFORE_LOOP = GRUResetBeforeLoop()
