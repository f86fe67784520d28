"""One layer, one direction: `rnn`, `gru` and `lstm` as functions of a sequence and the weights; and a loss.

    x [T, B, I] or ids [T, B] -> input projection (one matmul, or a row gather) -> recurrence -> out [T, B, H]

Weights have torch.nn's layout: w_ih [G*H, I], w_hh [G*H, H], biases [G*H], gates in the order r z n and i f g o.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells import dispatch, one_direction
from fastcells.backends.base import NOTHING, Call, LayerWeights, Steps
from fastcells.checks import check_input, check_options
from fastcells.cross_entropy import linear_cross_entropy as linear_cross_entropy
from fastcells.spec import (
    GRU_RESET_AFTER,
    GRU_RESET_BEFORE,
    LSTM,
    RNN_RELU,
    RNN_TANH,
    CellSpec,
    RecurrentWeights,
    State,
)
from fastcells.token_ids import is_token_ids

_ELMAN = {"tanh": RNN_TANH, "relu": RNN_RELU}


def rnn(
    x: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.RNN` as a function, one layer and one direction: `h' = act(W_ih x + b_ih + W_hh h + b_hh)`.

    Args:
        x: [T, B, I], or integer ids [T, B], which mean `one_hot(ids, I)`.
        h0: [B, H], or None for zeros.
        w_ih, w_hh: [H, I] and [H, H]. b_ih, b_hh: [H] or None.
        nonlinearity: "tanh" or "relu".
        lengths: int [B]; steps from `lengths[b]` on leave the state of row b alone and give zero outputs. A length
            above T means T, one below 0 means 0.
        resets: bool [T, B]; where true, the step starts from a state of zeros instead of the one before it, as at the
            start of an episode in reinforcement learning. Past a row's length it means nothing.
        reverse: walk time from the last step to the first; `out[t]` stays the output at step t.
        impl: "auto", "torch", "cpu", "triton", "triton-step" or "gluon".

    Returns:
        out [T, B, H] and h_n [B, H].

    Raises:
        ValueError: an unknown nonlinearity or impl. RuntimeError: shapes that do not match. CannotRun (a
        RuntimeError): `impl` names an implementation that cannot run this case here.
        IndexError: a token id outside [0, I), on the CPU.

    Equations: documentation of torch.nn.RNN (Elman 1990).
    """
    if nonlinearity not in _ELMAN:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    weights = LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh))
    out, (h_n,) = _layer(_ELMAN[nonlinearity], impl, x, (h0,), weights, Steps(reverse, lengths, resets))
    return out, h_n


def gru(
    x: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.GRU` as a function, one layer and one direction.

    Args:
        x, h0, lengths, resets, reverse, impl: as for `rnn`.
        w_ih, w_hh: [3H, I] and [3H, H], gates in the order r, z, n. b_ih, b_hh: [3H] or None.
        reset_after: True for torch's `n = tanh(x_n + r * (W_hn h + b_hn))`, False for
            `n = tanh(x_n + W_hn (r * h) + b_hn)`.

    Returns:
        out [T, B, H] and h_n [B, H].

    Raises:
        as `rnn`.

    Equations: documentation of torch.nn.GRU; reset-before: Cho et al. 2014 (arXiv 1406.1078v3), equations 5 to 8,
    with z and 1 - z exchanged as torch has them.
    """
    spec = GRU_RESET_AFTER if reset_after else GRU_RESET_BEFORE
    weights = LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh))
    out, (h_n,) = _layer(spec, impl, x, (h0,), weights, Steps(reverse, lengths, resets))
    return out, h_n


def lstm(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    w_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.nn.LSTM` as a function, one layer and one direction.

    Args:
        x, h0, lengths, resets, reverse, impl: as for `rnn`. c0: [B, H], or None for zeros.
        w_ih, w_hh: [4H, I] and [4H, H], gates in the order i, f, g, o. b_ih, b_hh: [4H] or None.
        w_hr: [P, H] or None: the projection of `proj_size=P`; h0, the output and W_hh's columns are then P wide.

    Returns:
        out [T, B, H], h_n [B, H] and c_n [B, H].

    Raises:
        as `rnn`.

    Equations: documentation of torch.nn.LSTM (Hochreiter and Schmidhuber 1997; projection: Sak et al. 2014).
    """
    weights = LayerWeights(w_ih, b_ih, RecurrentWeights(w_hh, b_hh, w_hr))
    out, (h_n, c_n) = _layer(LSTM, impl, x, (h0, c0), weights, Steps(reverse, lengths, resets))
    return out, h_n, c_n


def _layer(
    spec: CellSpec, impl: str, x: Tensor, state: tuple[Tensor | None, ...], weights: LayerWeights, steps: Steps
) -> tuple[Tensor, State]:
    """Any of the above. steps: `lengths` as the user gave them."""
    dispatch.check_impl(impl)
    check_input(spec, x, weights)
    check_options(x, steps.lengths, steps.resets)
    (T, B), recurrent = x.shape[:2], weights.recurrent
    if steps.lengths is not None:
        steps = steps._replace(lengths=steps.lengths.long().clamp(0, T).to(x.device, torch.int32))
    options = steps.options | ({"proj_size"} if recurrent.w_hr is not None else NOTHING)
    call = Call(impl, spec, is_token_ids(x), T, B, weights.w_ih, recurrent.w_hh, options, type(x))
    return one_direction.run(dispatch.choose(call), spec, x, state, weights, steps)
