"""One layer, one direction: `rnn`, `gru` and `lstm` as functions of a sequence and the weights.

    x [T, B, I] or ids [T, B] -> input projection (one matmul, or a row gather) -> recurrence -> out [T, B, H]

Weights have torch.nn's layout: w_ih [G*H, I], w_hh [G*H, H], biases [G*H], gates in the order r z n and i f g o.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn import functional as F

from fastcells import dispatch, linear
from fastcells.autocast import autocast_dtype, no_autocast
from fastcells.backends.cpu.cell import CpuCell
from fastcells.backends.torch.aten import aten
from fastcells.backends.torch.cell import State, TorchCell
from fastcells.backends.torch.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.backends.torch.lstm import LSTM
from fastcells.backends.torch.recurrence import recur, unroll
from fastcells.backends.torch.rnn import RNN_RELU, RNN_TANH
from fastcells.token_ids import check_range, gather_rows, is_token_ids

ONEDNN = torch.backends.mkldnn.is_available()  # asked once: Dynamo cannot trace the question
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
        impl: "auto", "torch", "cpu", "triton" or "triton-step".

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
    op = _VF.rnn_tanh if nonlinearity == "tanh" else _VF.rnn_relu
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, (h_n,) = _layer(_ELMAN[nonlinearity], op, impl, x, (h0,), weights, None, lengths, resets, reverse)
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
    cell = GRU_RESET_AFTER if reset_after else GRU_RESET_BEFORE
    out, (h_n,) = _layer(cell, _VF.gru, impl, x, (h0,), (w_ih, w_hh, b_ih, b_hh), None, lengths, resets, reverse)
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
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, (h_n, c_n) = _layer(LSTM, _VF.lstm, impl, x, (h0, c0), weights, w_hr, lengths, resets, reverse)
    return out, h_n, c_n


def _layer(
    cell: TorchCell,
    op: Callable[..., Any],
    impl: str,
    x: Tensor,
    state: tuple[Tensor | None, ...],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    w_hr: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    w_ih, w_hh, b_ih, b_hh = weights
    dispatch.check_impl(impl)
    _check_shapes(cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, lengths)
    _check_resets(x, resets)
    T, B = x.shape[:2]
    call = dispatch.Call(
        cell.name,
        is_token_ids(x),
        T,
        B,
        w_hh,
        lengths=lengths is not None,
        projected=w_hr is not None,
        resets=resets is not None,
        input_type=type(x),
    )
    choice = dispatch.choose(impl, call)
    if call.token_ids and not (call.lengths or call.resets):
        one_step = dispatch.of_one_step(impl, choice, x, T, w_ih)
        choice = choice if one_step.path == "one-hot" else one_step  # the layers have taken that one before
    initial = _initial_state(x, state, w_hh, w_hr)
    if choice.path == "aten":
        has_biases = b_ih is not None or b_hh is not None
        biases = [w_hh.new_zeros(len(w_hh)) if b is None else b for b in (b_ih, b_hh)] if has_biases else []
        flat = [w_ih, w_hh, *biases] + ([] if w_hr is None else [w_hr])
        stacked = [s.unsqueeze(0) for s in initial]
        hx = stacked[0] if len(stacked) == 1 else (stacked[0], stacked[1])
        out, last = aten(op, x.flip(0) if reverse else x, hx, flat, has_biases)
        # Not a view, which could not be detached in place by whoever gets it.
        return (out.flip(0) if reverse else out), tuple(s[0].clone() for s in (last if len(stacked) > 1 else (last,)))

    mask = None if lengths is None else _mask(x, lengths)
    return own_recurrence(cell, choice, x, initial, weights, w_hr=w_hr, mask=mask, resets=resets, reverse=reverse)


def own_recurrence(
    cell: TorchCell,
    choice: dispatch.Choice,
    x: Tensor,
    state: State,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    *,
    w_hr: Tensor | None = None,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """Input projection and recurrence by this package: whatever ATen's fused recurrence does not compute.

    x: [T, B, I] or ids [T, B]. state: each [B, H]. weights: w_ih, w_hh, b_ih, b_hh. mask: bool [T, B, 1].
    resets: bool [T, B].
    """
    w_ih, w_hh, b_ih, b_hh = weights
    # Under autocast, what torch has as one operator (cuDNN's recurrences, oneDNN's LSTM) runs in the lower precision
    # as a whole, and so does Triton. What torch composes of operators is cast operator by operator, and so is ours.
    whole = choice.impl != "torch" or x.is_cuda or (cell is LSTM and w_hr is None and ONEDNN)
    dtype = autocast_dtype(w_ih) if whole else None
    if dtype is not None:
        x = x if is_token_ids(x) else x.to(dtype)
        w_ih, w_hh, state = w_ih.to(dtype), w_hh.to(dtype), tuple(s.to(dtype) for s in state)
        b_ih, b_hh, w_hr = (None if w is None else w.to(dtype) for w in (b_ih, b_hh, w_hr))
    with no_autocast(x) if dtype is not None else contextlib.nullcontext():
        if choice.impl in ("triton", "triton-step") and is_token_ids(x):
            from fastcells.backends.triton.tokens import recur_on_ids  # triton is optional

            ids = x if mask is None else torch.where(mask.squeeze(-1), x, 0)
            return recur_on_ids(cell, choice.path, ids, state, (w_ih, w_hh, b_ih, b_hh), mask, reverse)
        x_proj = input_projection(x, w_ih, b_ih, mask, in_c=choice.impl == "cpu" or choice is dispatch.GATHERED_IN_C)
        if choice is dispatch.GATHERED_IN_C:  # a single step: autograd's own way through it is the shorter one
            return unroll(cell, x_proj, state, w_hh, b_hh, w_hr, mask, reverse)
        rest = {"w_hr": w_hr, "mask": mask, "resets": resets}
        return recur(cell_of(choice, cell), x_proj, state, w_hh, b_hh, **rest, reverse=reverse)


def cell_of(choice: dispatch.Choice, cell: TorchCell) -> TorchCell:
    """The cell in the implementation that was chosen."""
    if choice.impl == "torch":
        return cell
    if choice.impl == "cpu":
        return CpuCell(cell)
    from fastcells.backends.triton.cell import TritonCell  # triton is optional

    return TritonCell(cell, choice.path)


def input_projection(
    x: Tensor, w_ih: Tensor, b_ih: Tensor | None, mask: Tensor | None = None, *, in_c: bool = False
) -> Tensor:
    """`W_ih x + b_ih` for dense x [..., I] or ids [...]: [..., G*H].

    mask: bool [..., 1], false at padding, which may hold anything (NaN, ids out of range). in_c: by linear.
    """
    product, gather = (linear.linear, linear.gather_rows) if in_c else (F.linear, gather_rows)
    if not is_token_ids(x):
        return product(x if mask is None else torch.where(mask, x, 0), w_ih, b_ih)
    ids = x if mask is None else torch.where(mask.squeeze(-1), x, 0)
    if not in_c:  # C looks for itself
        check_range(ids, w_ih.shape[1])
    dtype = autocast_dtype(w_ih)
    if dtype is not None:  # the dtype of the matmul that this stands for
        w_ih, b_ih = w_ih.to(dtype), None if b_ih is None else b_ih.to(dtype)
    return gather(ids, w_ih, b_ih)


def _initial_state(
    x: Tensor, state: tuple[Tensor | None, ...], w_hh: Tensor, w_hr: Tensor | None
) -> tuple[Tensor, ...]:
    B, out_size = x.shape[1], w_hh.shape[1]
    sizes = (out_size, out_size if w_hr is None else w_hr.shape[1])
    filled = []
    for name, s, size in zip(("h0", "c0"), state, sizes, strict=False):
        if s is None:
            # new_zeros: where x is a batch that torch.func maps over, the zeros must be one too
            s = x.new_zeros(B, size, dtype=w_hh.dtype if is_token_ids(x) else x.dtype)
        elif s.shape != (B, size):
            raise RuntimeError(f"{name} must be [B, H] = {[B, size]}, got {list(s.shape)}")
        elif s.dtype != w_hh.dtype and autocast_dtype(w_hh) is None:
            raise RuntimeError(f"{name} has dtype {s.dtype} and the weights have {w_hh.dtype}")
        filled.append(s)
    return tuple(filled)


def _check_shapes(
    cell: TorchCell,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    lengths: Tensor | None,
) -> None:
    dim = 2 if is_token_ids(x) else 3
    if x.dim() != dim:
        raise RuntimeError(f"input must have {dim} dimensions, got {x.dim()}")
    if x.shape[0] == 0:
        raise RuntimeError(f"Expected sequence length to be larger than 0 in RNN, got input of shape {list(x.shape)}")
    if w_ih.dim() != 2 or (dim == 3 and x.shape[2] != w_ih.shape[1]):
        raise RuntimeError(f"input of shape {list(x.shape)} does not fit w_ih of shape {list(w_ih.shape)}")
    if w_hh.dim() != 2 or len(w_hh) != len(w_ih) or len(w_hh) % cell.gates:
        raise RuntimeError(
            f"w_ih and w_hh must have {cell.gates}*H rows, got shapes {list(w_ih.shape)} and {list(w_hh.shape)}"
        )
    hidden = len(w_hh) // cell.gates
    columns = hidden if w_hr is None else w_hr.shape[0]
    if w_hh.shape[1] != columns:
        width = "" if w_hr is None else f" with w_hr of shape {list(w_hr.shape)}"
        raise RuntimeError(f"w_hh must be {[len(w_hh), columns]}{width}, got {list(w_hh.shape)}")
    if w_hr is not None and (w_hr.dim() != 2 or w_hr.shape[1] != hidden):
        raise RuntimeError(f"w_hr must be [P, H] with H = {hidden}, got {list(w_hr.shape)}")
    for name, b in (("b_ih", b_ih), ("b_hh", b_hh)):
        if b is not None and b.shape != (len(w_hh),):
            raise RuntimeError(f"{name} must be [{len(w_hh)}], got {list(b.shape)}")
    if lengths is not None and (lengths.shape != x.shape[1:2] or not is_token_ids(lengths)):
        raise RuntimeError(
            f"lengths must be an integer tensor of shape {[x.shape[1]]}, got {lengths.dtype} {list(lengths.shape)}"
        )


def _check_resets(x: Tensor, resets: Tensor | None) -> None:
    if resets is not None and (resets.dtype != torch.bool or resets.shape != x.shape[:2]):
        raise RuntimeError(
            f"resets must be a bool tensor of shape {list(x.shape[:2])}, got {resets.dtype} {list(resets.shape)}"
        )


def _mask(x: Tensor, lengths: Tensor) -> Tensor:
    """bool [T, B, 1]: whether step t belongs to the sequence of row b."""
    steps = torch.arange(x.shape[0], device=x.device)
    return (steps.unsqueeze(1) < lengths.to(x.device)).unsqueeze(-1)
