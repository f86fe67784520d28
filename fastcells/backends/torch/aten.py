"""ATen's fused recurrence: one call for a whole stack of layers, the one that torch.nn's own layers make."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def aten(
    op: Callable[..., Any],
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Call `torch._VF.rnn_tanh`, `rnn_relu`, `gru` or `lstm`.

    x: [T, B, I] ([B, T, I] with batch_first), or the data of a PackedSequence together with its batch_sizes.
    hx: h0 or (h0, c0), each [layers * directions, B, H]. weights: flat, in torch's order.
    Returns the output and the final state, in the form of hx.
    """
    stack = (weights, has_biases, num_layers, dropout, training, bidirectional)
    if x.is_cuda and not torch.compiler.is_compiling():
        with warnings.catch_warnings():
            # The weights are separate tensors on purpose: a flat buffer breaks parametrizations and weight sharing.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            out, *last = _call(op, x, hx, stack, batch_first, batch_sizes)
    else:
        out, *last = _call(op, x, hx, stack, batch_first, batch_sizes)
    return out, tuple(last) if isinstance(hx, tuple) else last[0]


def _call(
    op: Callable[..., Any],
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor],
    stack: tuple[Any, ...],
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> Any:
    if batch_sizes is None:
        return op(x, hx, *stack, batch_first)
    return op(x, batch_sizes, hx, *stack)
