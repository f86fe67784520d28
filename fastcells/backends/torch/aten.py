"""ATen's fused recurrence: one call for a whole stack of layers, the one that torch.nn's own layers make."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from fastcells.backends.base import LayerWeights
from fastcells.spec import State

OPERATORS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": _VF.rnn_tanh,
    "rnn_relu": _VF.rnn_relu,
    "gru": _VF.gru,
    "lstm": _VF.lstm,
}


def aten(
    cell: str,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    has_biases: bool,
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Call `torch._VF.rnn_tanh`, `rnn_relu`, `gru` or `lstm`.

    x: [T, B, I] ([B, T, I] with batch_first), or the data of a PackedSequence together with its batch_sizes.
    state: each [layers * directions, B, H]. weights: flat, in torch's order.
    Returns the output and the final state.
    """
    if not x.is_cpu:
        if not training:
            # cuDNN differentiates only what ran as if for training, which means no more than that without dropout.
            dropout, training = 0.0, torch.is_grad_enabled()
        # Which cuDNN does not ask for, it demands.
        x, state, weights = x.contiguous(), tuple(s.contiguous() for s in state), [w.contiguous() for w in weights]
    hx = state if len(state) > 1 else state[0]
    stack = (hx, weights, has_biases, num_layers, dropout, training, bidirectional)
    arguments = (x, *stack, batch_first) if batch_sizes is None else (x, batch_sizes, *stack)
    if x.is_cuda and not torch.compiler.is_compiling():
        with warnings.catch_warnings():
            # The weights are separate tensors on purpose: a flat buffer breaks parametrizations and weight sharing.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            out, *last = OPERATORS[cell](*arguments)
    else:
        out, *last = OPERATORS[cell](*arguments)
    return out, tuple(last)


def one_direction(cell: str, x: Tensor, state: State, weights: LayerWeights, reverse: bool) -> tuple[Tensor, State]:
    """`aten` for one layer and direction. x: [T, B, I]. state: each [B, H]."""
    w_hh, b_hh, w_hr, *_ = weights.recurrent
    has_biases = weights.b_ih is not None or b_hh is not None
    biases = [w_hh.new_zeros(len(w_hh)) if b is None else b for b in (weights.b_ih, b_hh)] if has_biases else []
    flat = [weights.w_ih, w_hh, *biases] + ([] if w_hr is None else [w_hr])
    stacked = tuple(s.unsqueeze(0) for s in state)
    out, last = aten(cell, x.flip(0) if reverse else x, stacked, flat, has_biases)
    # Not a view, which could not be detached in place by whoever gets it.
    return (out.flip(0) if reverse else out), tuple(s[0].clone() for s in last)
