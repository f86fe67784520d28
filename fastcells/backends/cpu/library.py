"""`native.forward` and `backward` as operators of torch.library, for torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.cpu.native import CELLS, backward, forward


@torch.library.custom_op("fastcells::cpu_forward", mutates_args=())
def cpu_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`forward` as an operator: out, hidden, cells, saved, h_n and c_n.

    An empty tensor stands for what a cell has not, and for a `hidden` that no backward will read.
    """
    state = (h0,) if c0 is None else (h0, c0)
    f = forward(cell, x, state, w, b, mask, resets=resets, reverse=reverse, save=save)
    h_n, c_n = f.last[0], f.last[-1] if c0 is not None else None
    return f.out, _some(f.hidden if save else None, x), _some(f.cells, x), _some(f.saved, x), h_n, _some(c_n, x)


@cpu_forward.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    cell: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, (B, H), width = x.shape[0], h0.shape, CELLS[cell].saved
    hidden = x.new_empty(T, B, H) if save else x.new_empty(0)
    cells = x.new_empty(T, B, H) if save and c0 is not None else x.new_empty(0)
    saved = x.new_empty(T, B, width, H) if save and width else x.new_empty(0)
    c_n = x.new_empty(0) if c0 is None else x.new_empty(B, H)
    return x.new_empty(T, B, H), hidden, cells, saved, x.new_empty(B, H), c_n


@torch.library.custom_op("fastcells::cpu_backward", mutates_args=())
def cpu_backward(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` as an operator: d_x, d_gates (empty where it is the same as d_x), d_h0 and d_c0."""
    state, d_last = ((h0,), (d_h_n,)) if c0 is None or d_c_n is None else ((h0, c0), (d_h_n, d_c_n))
    given = (hidden, cells, saved)
    out = backward(cell, d_hidden, d_last, state, w, mask, *given, resets=resets, reverse=reverse)
    d_gates = None if out.d_gates is out.d_x else out.d_gates
    return out.d_x, _some(d_gates, w), out.d_state[0], _some(out.d_state[1] if c0 is not None else None, w)


@cpu_backward.register_fake
def _(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    mask: Tensor | None,
    resets: Tensor | None,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, H = hidden.shape
    d_x = hidden.new_empty(T, B, CELLS[cell].gates * H)
    d_gates = torch.empty_like(d_x) if cell == "gru" else w.new_empty(0)
    return d_x, d_gates, hidden.new_empty(B, H), w.new_empty(0) if c0 is None else hidden.new_empty(B, H)


def _some(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if tensor is None else tensor
