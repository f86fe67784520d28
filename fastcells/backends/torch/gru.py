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
from torch.nn.functional import linear

from fastcells.backends.torch.cell import Before, Gradients, State, TorchCell, Trace, hold, own_output, scratch


def _common_factors(z: Tensor, n: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What dh' is multiplied with for d_n, d_z and the part of dh that goes around the gates: each [T, B, H]."""
    n_factor = (1 - z) * (1 - n * n)
    z_factor = (before - n) * z * (1 - z)
    if mask is None:
        return n_factor, z_factor, z
    return n_factor * mask, z_factor * mask, torch.where(mask, z, 1)


class GRUResetAfter(TorchCell):
    name = "gru"
    gates = 3

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, -1)
        r = torch.sigmoid(x_r + h_r)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (n + z * (h - n),)

    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        (h,) = state
        T, (B, H) = len(steps), h.shape
        hidden = h.new_empty(T, B, H)
        gates_all, gates_t = scratch(save, T, B, 3 * H, like=h)  # h W_hh^T + b_hh, then (r, z, h_n)
        n_all, n_t = scratch(save, T, B, H, like=h)
        h_t, x_t = hidden.unbind(0), x.unbind(0)
        w = w_hh.t()
        for t in steps:
            gates, n = gates_t[t], n_t[t]
            if b_hh is None:
                torch.mm(h, w, out=gates)
            else:
                torch.addmm(b_hh, h, w, out=gates)
            rz = gates[:, : 2 * H]
            rz.add_(x_t[t][:, : 2 * H]).sigmoid_()
            torch.addcmul(x_t[t][:, 2 * H :], gates[:, :H], gates[:, 2 * H :], out=n).tanh_()
            torch.lerp(n, h, gates[:, H : 2 * H], out=h_t[t])
            hold(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(hidden, (h.clone(),), (gates_all, n_all) if save else (), own_output(hidden, mask, save))

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
        gates, n = saved
        r, z, h_n = gates.chunk(3, -1)
        n_factor, z_factor, around = _common_factors(z, n, before.whole, mask)
        T, B, H = n.shape
        factors = torch.cat([n_factor * h_n * r * (1 - r), z_factor, n_factor * r], -1).view(T, B, 3, H)
        d_gates = torch.empty_like(factors)  # with respect to h W_hh^T + b_hh
        d_h = d_last[0] + d_hidden[steps[-1]]
        d_h_all = torch.empty_like(n)
        factor_t, around_t, d_gates_t = factors.unbind(0), around.unbind(0), d_gates.unbind(0)
        d_hidden_t, d_h_t = d_hidden.unbind(0), d_h_all.unbind(0)
        for i in range(T - 1, -1, -1):
            t = steps[i]
            d_h_t[t].copy_(d_h)
            torch.mul(factor_t[t], d_h.unsqueeze(1), out=d_gates_t[t])
            d_h = d_h * around_t[t] if i == 0 else torch.addcmul(d_hidden_t[steps[i - 1]], d_h, around_t[t])
            d_h.addmm_(d_gates_t[t].view(B, 3 * H), w_hh)
        d_gates = d_gates.view(T, B, 3 * H)
        d_x = torch.cat([d_gates[..., : 2 * H], n_factor * d_h_all], -1)
        return Gradients(d_x, d_gates, (d_h,))


class GRUResetBefore(TorchCell):
    name = "gru_reset_before"
    gates = 3

    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        (h,) = state
        H = h.shape[-1]
        b_rz, b_n = (None, None) if b_hh is None else (b_hh[: 2 * H], b_hh[2 * H :])
        r, z = torch.sigmoid(x[..., : 2 * H] + linear(h, w_hh[: 2 * H], b_rz)).chunk(2, -1)
        n = torch.tanh(x[..., 2 * H :] + linear(r * h, w_hh[2 * H :], b_n))
        return (n + z * (h - n),)

    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        (h,) = state
        T, (B, H) = len(steps), h.shape
        hidden = h.new_empty(T, B, H)
        rz_all, rz_t = scratch(save, T, B, 2 * H, like=h)
        n_all, n_t = scratch(save, T, B, H, like=h)
        reset_all, reset_t = scratch(save, T, B, H, like=h)  # r * h
        h_t, x_t = hidden.unbind(0), (x if b_hh is None else x + b_hh).unbind(0)
        w_rz, w_n = w_hh[: 2 * H].t(), w_hh[2 * H :].t()
        for t in steps:
            rz, n, reset = rz_t[t], n_t[t], reset_t[t]
            torch.addmm(x_t[t][:, : 2 * H], h, w_rz, out=rz).sigmoid_()
            torch.mul(rz[:, :H], h, out=reset)
            torch.addmm(x_t[t][:, 2 * H :], reset, w_n, out=n).tanh_()
            torch.lerp(n, h, rz[:, H:], out=h_t[t])
            hold(mask, t, h_t[t], h)
            h = h_t[t]
        return Trace(hidden, (h.clone(),), (rz_all, n_all, reset_all) if save else (), own_output(hidden, mask, save))

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
        rz, n, _ = saved
        r, z = rz.chunk(2, -1)
        n_factor, z_factor, around = _common_factors(z, n, before.whole, mask)
        r_factor = before.whole * r * (1 - r)
        T, B, H = n.shape
        d_gates = n.new_empty(T, B, 3 * H)
        w_rz, w_n = w_hh[: 2 * H], w_hh[2 * H :]
        d_h = d_last[0]
        for t in reversed(steps):
            d_h = d_h + d_hidden[t]
            d_r, d_z, d_n = d_gates[t].chunk(3, -1)
            torch.mul(d_h, n_factor[t], out=d_n)
            torch.mul(d_h, z_factor[t], out=d_z)
            d_reset = d_n @ w_n
            torch.mul(d_reset, r_factor[t], out=d_r)
            d_h = torch.addcmul(d_h * around[t], d_reset, r[t]).addmm_(d_gates[t, :, : 2 * H], w_rz)
        return Gradients(d_gates, d_gates, (d_h,))

    def weight_gradient(self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...]) -> Tensor:
        H = before.whole.shape[-1]
        d_gates = d_gates.flatten(0, 1)
        d_rz = d_gates[:, : 2 * H].t() @ before.whole.flatten(0, 1)
        return torch.cat([d_rz, d_gates[:, 2 * H :].t() @ saved[2].flatten(0, 1)])


GRU_RESET_AFTER = GRUResetAfter()
GRU_RESET_BEFORE = GRUResetBefore()
