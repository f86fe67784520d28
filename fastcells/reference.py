"""Textbook recurrent cells in plain PyTorch: the specification that every implementation is checked against.

Written from the equations, one line an equation, unrolled over time, differentiated by autograd alone, in whatever
dtype the inputs have (float64 for gradient checks). Independent of the rest of the package on purpose: what judges
an implementation must not share its source.

Shapes: T time, B batch, I input, H hidden. x [T, B, I] or integer ids [T, B], which stand for `one_hot(ids, I)`;
states [B, H]; w_ih [G*H, I]; w_hh [G*H, H]; biases [G*H] or None; gates in torch's order r z n and i f g o.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence


def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of `torch.nn.RNNCell`: `h' = act(W_ih x + b_ih + W_hh h + b_hh)`. x [B, I], h [B, H]."""
    act = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    return act(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh))


def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> Tensor:
    """One step of `torch.nn.GRUCell`, or of the reset-before GRU (Cho et al. 2014, equations 5 to 8).

    `r = s(x_r + h_r)`, `z = s(x_z + h_z)`, `h' = (1 - z) * n + z * h`, and for n:
    reset-after `n = tanh(x_n + r * h_n)`, reset-before `n = tanh(x_n + W_hn (r * h) + b_hn)`.
    """
    H = h.shape[-1]
    x_r, x_z, x_n = _affine(x, w_ih, b_ih).split(H, dim=-1)
    h_r, h_z, h_n = _affine(h, w_hh, b_hh).split(H, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    if reset_after:
        n = torch.tanh(x_n + r * h_n)
    else:
        n = torch.tanh(x_n + _affine(r * h, w_hh[2 * H :], None if b_hh is None else b_hh[2 * H :]))
    return (1 - z) * n + z * h


def lstm_cell(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `torch.nn.LSTMCell`: `c' = f * c + i * g`, `h' = o * tanh(c')`, and with w_hr [P, H] `h' = W_hr h'`.

    `i = s(x_i + h_i)`, `f = s(x_f + h_f)`, `g = tanh(x_g + h_g)`, `o = s(x_o + h_o)`.
    """
    i, f, g, o = (_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)).split(c.shape[-1], dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else _affine(h, w_hr, None)), c


def rnn(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.RNN`, one layer and one direction. Returns out [T, B, H] and h_n [B, H]."""
    out, h = [], h0
    for x_t in _vectors(x, w_ih):
        h = rnn_cell(x_t, h, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity)
        out.append(h)
    return torch.stack(out), h


def gru(
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """`torch.nn.GRU` or the reset-before GRU, one layer and one direction. Returns out [T, B, H] and h_n [B, H]."""
    out, h = [], h0
    for x_t in _vectors(x, w_ih):
        h = gru_cell(x_t, h, w_ih, w_hh, b_ih, b_hh, reset_after=reset_after)
        out.append(h)
    return torch.stack(out), h


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.nn.LSTM`, one layer and one direction. Returns out [T, B, H], h_n [B, H] and c_n [B, H]."""
    out, h, c = [], h0, c0
    for x_t in _vectors(x, w_ih):
        h, c = lstm_cell(x_t, h, c, w_ih, w_hh, b_ih, b_hh, w_hr=w_hr)
        out.append(h)
    return torch.stack(out), h, c


State = tuple[Tensor, ...]  # (h,), or (h, c) for an LSTM


def layer(
    module: nn.RNNBase, x: Tensor | PackedSequence, hx: Tensor | State | None = None
) -> tuple[Tensor | PackedSequence, Tensor | State]:
    """What `module(x, hx)` must return, for a layer of torch.nn or of this package, without dropout.

    Walks layers and directions; a PackedSequence is taken apart and each of its sequences runs on its own.
    """
    state = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
    out: Tensor | PackedSequence
    if isinstance(x, PackedSequence):
        out, last = _packed(module, x, state)
    else:
        out, last = _any_layout(module, x, state)
    return out, (last if module.mode == "LSTM" else last[0])


def _packed(module: nn.RNNBase, x: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
    outs, lasts = [], []
    for b, sequence in enumerate(unpack_sequence(x)):
        own = None if state is None else tuple(s[:, b : b + 1] for s in state)
        out, last = _stack(module, sequence.unsqueeze(1), own)
        outs.append(out.squeeze(1))
        lasts.append(last)
    data = pack_sequence(outs, enforce_sorted=False).data
    packed = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return packed, tuple(torch.cat(s, 1) for s in zip(*lasts, strict=True))


def _any_layout(module: nn.RNNBase, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Unbatched and batch_first input, brought to [T, B, ...] and back."""
    if x.dim() == (2 if x.is_floating_point() else 1):
        out, last = _stack(module, x.unsqueeze(1), None if state is None else tuple(s.unsqueeze(1) for s in state))
        return out.squeeze(1), tuple(s.squeeze(1) for s in last)
    if module.batch_first:
        out, last = _stack(module, x.transpose(0, 1), state)
        return out.transpose(0, 1), last
    return _stack(module, x, state)


def _stack(module: nn.RNNBase, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    """All layers and directions. x: [T, B, I] or ids [T, B]; state: [layers * directions, B, H] each."""
    final: list[State] = []
    for index in range(module.num_layers):
        directions = []
        for direction in range(1 + module.bidirectional):
            start = _zeros(module, x) if state is None else tuple(s[len(final)] for s in state)
            suffix = f"_l{index}" + "_reverse" * direction
            y, *last = _direction(module, suffix, x.flip(0) if direction else x, start)
            directions.append(y.flip(0) if direction else y)
            final.append(tuple(last))
        x = torch.cat(directions, -1)
    return x, tuple(torch.stack(s) for s in zip(*final, strict=True))


def _direction(module: nn.RNNBase, suffix: str, x: Tensor, state: State) -> State:
    w_ih, w_hh = (getattr(module, name + suffix) for name in ("weight_ih", "weight_hh"))
    b_ih, b_hh, w_hr = (getattr(module, name + suffix, None) for name in ("bias_ih", "bias_hh", "weight_hr"))
    if module.mode == "LSTM":
        return lstm(x, state[0], state[1], w_ih, w_hh, b_ih, b_hh, w_hr=w_hr)
    if module.mode == "GRU":
        return gru(x, state[0], w_ih, w_hh, b_ih, b_hh, reset_after=getattr(module, "reset_after", True))
    return rnn(x, state[0], w_ih, w_hh, b_ih, b_hh, nonlinearity=module.mode.removeprefix("RNN_").lower())


def _zeros(module: nn.RNNBase, x: Tensor) -> State:
    w: Tensor = getattr(module, "weight_hh_l0")  # noqa: B009 torch types it as Tensor | Module
    h = w.new_zeros(x.shape[1], w.shape[1])
    return (h, w.new_zeros(x.shape[1], module.hidden_size)) if module.mode == "LSTM" else (h,)


def _vectors(x: Tensor, w_ih: Tensor) -> Tensor:
    return x if x.is_floating_point() else nn.functional.one_hot(x.long(), w_ih.shape[1]).to(w_ih.dtype)


def _affine(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return x @ w.t() if b is None else x @ w.t() + b
