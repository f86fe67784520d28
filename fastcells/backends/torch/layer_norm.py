"""The LSTM and the GRU with layer normalisation in torch's operators. x is the normalised input projection.

The equations are in `fastcells/spec/layer_norm.py`. Over N units, with `s = 1 / sqrt(var(a) + 1e-5)`,

    y = LN(a; gain, bias) = u * gain + bias,   u = (a - mean(a)) s

Backward: mean(a) and s depend on all units of a, `du_i/da_j = s (1[i = j] - 1/N - u_i u_j / N)`, and so

    d_u = d_y gain     d_a = s (d_u - mean(d_u) - u mean(d_u u))     d_gain = sum(d_y u)     d_bias = sum(d_y)

which ATen has as one operator. The loop over time needs d_a alone, one norm of [B, N] a step; the sums are those of all
steps at once. What d_y is, is linear in the states' gradients, as in the cells without norms:

    LSTM   d_m = dh' o (1 - tanh(m)^2) with m = LN(c'), `d_c' += d_a of d_m`, then d_i, d_f, d_g and d_o as in lstm.py
    GRU    d_r, d_z and d_n as in gru.py; what r multiplies, LN(W_hn h), gets `d_n r`

Equations: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), equations 3 and 4, and supplement, 20 to 22 and 29 to 31; the
adjoint is theirs differentiated by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch import gru, lstm
from fastcells.backends.torch.loop import Loop, buffer_per_step, freeze_finished, own_output, restart
from fastcells.spec import State

EPS = 1e-5  # torch.nn.LayerNorm's default
_adjoint = torch.ops.aten.native_layer_norm_backward.default


class Norm:
    """LN of N units at each step, and what its adjoint needs of each, if it is to be saved."""

    def __init__(self, gain: Tensor, bias: Tensor, T: int, save: bool) -> None:
        self.gain, self.bias, self.shape = gain, bias, gain.shape
        self.statistics: list[tuple[Tensor, Tensor]] | None = [(gain, gain)] * T if save else None

    def __call__(self, t: int, a: Tensor) -> Tensor:
        """y [B, N] from a [B, N]."""
        y, *statistics = torch.native_layer_norm(a, self.shape, self.gain, self.bias, EPS)
        if self.statistics is not None:
            self.statistics[t] = (statistics[0], statistics[1])
        return y

    def saved(self) -> tuple[Tensor, ...]:
        """mean(a) and s of all steps, [T, B, 1] each; nothing unless they were to be saved."""
        return tuple(torch.stack(each) for each in zip(*self.statistics or (), strict=True))


class NormBackward:
    """The adjoint of `Norm`. a: [T, B, N]. mean, s: as `Norm.saved`."""

    def __init__(self, gain: Tensor, bias: Tensor, a: Tensor, mean: Tensor, s: Tensor) -> None:
        self.gain, self.bias, self.shape = gain, bias, gain.shape
        self.all = a, mean, s
        self.each = list(zip(a.unbind(0), mean.unbind(0), s.unbind(0), strict=True))

    def __call__(self, t: int, d_y: Tensor) -> Tensor:
        """d_a [B, N] from d_y [B, N]."""
        a, mean, s = self.each[t]
        d_a: Tensor = _adjoint(d_y, a, self.shape, mean, s, self.gain, None, [True, False, False])[0]
        return d_a

    def of_parameters(self, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """d_gain and d_bias [N] from d_y [T, B, N]."""
        d_y, a, mean, s = (each.flatten(0, 1) for each in (d_y, *self.all))
        _, d_gain, d_bias = _adjoint(d_y, a, self.shape, mean, s, self.gain, self.bias, [False, True, True])
        return d_gain, d_bias


class LayerNormLSTMLoop(Loop):
    options = frozenset({"lengths", "resets"})

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w = inputs.x.x, inputs.weights.w_hh.t()
        order, mask, resets = inputs.steps.order(len(x)), inputs.steps.mask(len(x)), inputs.steps.restarts(len(x))
        h, c = inputs.state
        T, (B, H) = len(x), h.shape
        _, gain, gain_c, _, bias, bias_c = inputs.weights.extra
        norm, norm_c = Norm(gain, bias, T, save), Norm(gain_c, bias_c, T, save)
        hidden, c_all = h.new_empty(T, B, H), h.new_empty(T, B, H)
        a_all, a_t = buffer_per_step(save, T, B, 4 * H, like=h)  # h W_hh^T
        gates_all, gates_t = buffer_per_step(save, T, B, 4 * H, like=h)  # i, f, g, o
        tanh_all, tanh_t = buffer_per_step(save, T, B, H, like=h)  # tanh(LN(c'))
        h_t, c_t, x_t = hidden.unbind(0), c_all.unbind(0), x.unbind(0)
        for t in order:
            h, c = restart(resets, t, h), restart(resets, t, c)
            gates = torch.add(x_t[t], norm(t, torch.mm(h, w, out=a_t[t])), out=gates_t[t])
            i_f, g, o = gates.split([2 * H, H, H], 1)
            i, f = i_f.sigmoid_().chunk(2, 1)
            torch.mul(f, c, out=c_t[t]).addcmul_(i, g.tanh_())
            torch.tanh(norm_c(t, c_t[t]), out=tanh_t[t])
            torch.mul(o.sigmoid_(), tanh_t[t], out=h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            freeze_finished(mask, t, c_t[t], c)
            h, c = h_t[t], c_t[t]
        saved = (gates_all, c_all, tanh_all, a_all, *norm.saved(), *norm_c.saved()) if save else ()
        return Trace(hidden, (h.clone(), c.clone()), saved, own_output(hidden, mask, save))

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask, resets = inputs.steps.order(T), inputs.steps.mask(T), inputs.steps.restarts(T)
        _, gain, gain_c, _, bias, bias_c = inputs.weights.extra
        gates, c_all, tanh_m, a, *statistics = trace.saved
        norm = NormBackward(gain, bias, a, *statistics[:2])
        norm_c = NormBackward(gain_c, bias_c, c_all, *statistics[2:])
        c_before = PreviousStates(c_all, inputs.state[1], inputs.steps).cat
        d_m, d_gates, f = lstm.factors(gates, tanh_m, c_before, mask)  # the factors become the gradients
        H, d_a = c_all.shape[-1], torch.empty_like(gates)
        d_ifg_t, d_o_t = d_gates[..., : 3 * H].unflatten(-1, (3, H)).unbind(0), d_gates[..., 3 * H :].unbind(0)
        d_h, d_c = d_last
        for t in reversed(order):
            d_h = d_h + d_hidden[t]
            d_c = d_c + norm_c(t, d_m[t].mul_(d_h))
            d_ifg_t[t].mul_(d_c.unsqueeze(1))
            d_o_t[t].mul_(d_h)
            d_before = d_a[t].copy_(norm(t, d_gates[t])) @ w_hh
            d_h = restart(resets, t, d_before if mask is None else torch.where(mask[t], d_before, d_h))
            d_c = restart(resets, t, d_c * f[t])
        (d_gain, d_bias), (d_gain_c, d_bias_c) = norm.of_parameters(d_gates), norm_c.of_parameters(d_m)
        return Gradients(d_gates, d_a, (d_h, d_c), (None, d_gain, d_gain_c, None, d_bias, d_bias_c))


class LayerNormGRULoop(Loop):
    options = frozenset({"lengths", "resets"})

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        x, w_hh = inputs.x.x, inputs.weights.w_hh
        order, mask, resets = inputs.steps.order(len(x)), inputs.steps.mask(len(x)), inputs.steps.restarts(len(x))
        (h,) = inputs.state
        T, (B, H) = len(x), h.shape
        rz_norm, n_norm = (Norm(*each, T, save) for each in _of_rz_and_n(inputs))
        hidden = h.new_empty(T, B, H)
        a_rz_all, a_rz_t = buffer_per_step(save, T, B, 2 * H, like=h)  # h W_hr^T, h W_hz^T
        a_n_all, a_n_t = buffer_per_step(save, T, B, H, like=h)  # h W_hn^T
        gates_all, gates_t = buffer_per_step(save, T, B, 3 * H, like=h)  # r, z, and LN(h W_hn^T), as in gru.py
        n_all, n_t = buffer_per_step(save, T, B, H, like=h)
        h_t, x_rz_t, x_n_t = hidden.unbind(0), x[..., : 2 * H].unbind(0), x[..., 2 * H :].unbind(0)
        w_rz, w_n = w_hh[: 2 * H].t(), w_hh[2 * H :].t()
        for t in order:
            h, gates, n = restart(resets, t, h), gates_t[t], n_t[t]
            rz, h_n = gates.split([2 * H, H], 1)
            torch.add(x_rz_t[t], rz_norm(t, torch.mm(h, w_rz, out=a_rz_t[t])), out=rz).sigmoid_()
            h_n.copy_(n_norm(t, torch.mm(h, w_n, out=a_n_t[t])))
            torch.addcmul(x_n_t[t], rz[:, :H], h_n, out=n).tanh_()
            torch.lerp(n, h, rz[:, H:], out=h_t[t])
            freeze_finished(mask, t, h_t[t], h)
            h = h_t[t]
        saved = (gates_all, n_all, a_rz_all, *rz_norm.saved(), a_n_all, *n_norm.saved()) if save else ()
        return Trace(hidden, (h.clone(),), saved, own_output(hidden, mask, save))

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        w_hh, T = inputs.weights.w_hh, len(d_hidden)
        order, mask, resets = inputs.steps.order(T), inputs.steps.mask(T), inputs.steps.restarts(T)
        gates, n, *normed = trace.saved
        of_rz, of_n = _of_rz_and_n(inputs)
        rz_norm, n_norm = NormBackward(*of_rz, *normed[:3]), NormBackward(*of_n, *normed[3:])
        r_factor, z_factor, d_h_n, n_factor, around = gru.factors(gates, n, previous.cat, mask)
        d_rz = torch.stack([r_factor, z_factor], 2)  # the factors become the gradients
        d_a, d_h_all = torch.empty_like(gates), torch.empty_like(n)
        d_h = d_last[0]
        for t in reversed(order):
            d_h = torch.add(d_h, d_hidden[t], out=d_h_all[t])
            d_a_rz = rz_norm(t, d_rz[t].mul_(d_h.unsqueeze(1)).flatten(1))
            torch.cat([d_a_rz, n_norm(t, d_h_n[t].mul_(d_h))], 1, out=d_a[t])
            d_h = restart(resets, t, (d_h * around[t]).addmm_(d_a[t], w_hh))
        d_rz = d_rz.flatten(2)
        d_of_rz, d_of_n = rz_norm.of_parameters(d_rz), n_norm.of_parameters(d_h_n)
        d_gain, d_bias = (torch.cat(each) for each in zip(d_of_rz, d_of_n, strict=True))
        return Gradients(torch.cat([d_rz, n_factor * d_h_all], -1), d_a, (d_h,), (None, d_gain, None, d_bias))


def _of_rz_and_n(inputs: Inputs) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gain and bias of the norm of r and z, and of that of n."""
    _, gain, _, bias = inputs.weights.extra
    both = 2 * inputs.weights.w_hh.shape[1]
    return (gain[:both], bias[:both]), (gain[both:], bias[both:])


LAYER_NORM_LSTM_LOOP = LayerNormLSTMLoop()
LAYER_NORM_GRU_LOOP = LayerNormGRULoop()
