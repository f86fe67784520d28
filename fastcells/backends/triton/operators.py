"""The Triton recurrence as operators of torch.library, so that torch.compile and CUDA graphs see one operator each.

`fastcells::recurrence_forward` and `fastcells::recurrence_backward`. A tensor that a cell does not have (c of a GRU,
say) is passed as None and returned empty. Autograd is `torch_impl/recurrence.py`'s, which calls these.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastcells.backends.triton.backend import gpu, matmul_precision
from fastcells.kernels.triton import gru, launch, launch_split, launch_step, lstm, plan, rnn
from fastcells.kernels.triton.rule import UpdateRule

RULES: dict[str, UpdateRule] = {
    rule.name: rule for rule in (rnn.RNN_TANH, rnn.RNN_RELU, gru.GRU_RESET_AFTER, gru.GRU_RESET_BEFORE, lstm.LSTM)
}


@torch.library.custom_op("fastcells::recurrence_forward", mutates_args=())
def recurrence_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    rule: str,
    path: str,
    reverse: bool,
    save: bool,
    ids: Tensor | None = None,
    b_ih: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, B, H], cells [T, B, H], saved [T, B, saved, H], h_n and c_n [B, H].

    x: [T, B, G*H], or with ids [T, B] (int32 or int64) the table [V, G*H] of W_ih^T, whose rows they name; b_ih: [G*H],
    only with ids. h0, c0: [B, H]. w: [G*H, H]. b: [G*H]. lengths: int32 [B]. path: "step", or "sequence" or "split",
    of which the shape decides.
    """
    check_alike(x_proj=x, h0=h0, c0=c0, w_hh=w, b_hh=b, b_ih=b_ih)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever the tensors' is
        out = _forward(rule, path, h0)(
            RULES[rule],
            launch.Input(_whole(x), *(None if p is None else _whole(p) for p in (ids, b_ih))),
            tuple(_whole(s) for s in (h0, c0) if s is not None),
            _whole(w),
            None if b is None else _whole(b),
            lengths,
            reverse=reverse,
            save=save,
            precision=matmul_precision(x.dtype, x.device),
        )
    return (
        out.hidden,
        _some(out.cells, x),
        _some(out.saved, x),
        out.last[0],
        _some(out.last[-1] if c0 is not None else None, x),
    )


@recurrence_forward.register_fake
def _(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    rule: str,
    path: str,
    reverse: bool,
    save: bool,
    ids: Tensor | None = None,
    b_ih: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, (B, H), width = len(x if ids is None else ids), h0.shape, RULES[rule].saved
    hidden, last = h0.new_empty(T, B, H), h0.new_empty(B, H)
    saved = h0.new_empty(T, B, width, H) if save and width else x.new_empty(0)
    if c0 is None:
        return hidden, x.new_empty(0), saved, last, x.new_empty(0)
    return hidden, torch.empty_like(hidden), saved, last, torch.empty_like(last)


@torch.library.custom_op("fastcells::recurrence_backward", mutates_args=())
def recurrence_backward(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    lengths: Tensor | None,
    rule: str,
    path: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_x [T, B, G*H], d_gates [T, B, G*H] (empty where it is the same as d_x), d_h0 and d_c0 [B, H].

    The adjoint of `recurrence_forward`; hidden, cells and saved are its results.
    """
    with torch.cuda.device_of(d_hidden):
        d_x, d_gates, d_state = _backward(rule, path, h0)(
            RULES[rule],
            launch.Forward(hidden, cells, saved, ()),
            _whole(d_hidden),
            tuple(_whole(d) for d in (d_h_n, d_c_n) if d is not None),
            tuple(_whole(s) for s in (h0, c0) if s is not None),
            _whole(w),
            lengths,
            reverse=reverse,
            precision=matmul_precision(d_hidden.dtype, d_hidden.device),
        )
    same = RULES[rule].same_gradient
    return (
        d_x.flatten(2),
        _some(None if same else d_gates.flatten(2), w),
        d_state[0],
        _some(d_state[1] if c0 is not None else None, w),
    )


@recurrence_backward.register_fake
def _(
    d_hidden: Tensor,
    d_h_n: Tensor,
    d_c_n: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    w: Tensor,
    hidden: Tensor,
    cells: Tensor | None,
    saved: Tensor | None,
    lengths: Tensor | None,
    rule: str,
    path: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, H = hidden.shape
    d_x = d_hidden.new_empty(T, B, RULES[rule].gates * H)
    d_gates = w.new_empty(0) if RULES[rule].same_gradient else torch.empty_like(d_x)
    return d_x, d_gates, h0.new_empty(B, H), w.new_empty(0) if c0 is None else c0.new_empty(B, H)


def _whole(tensor: Tensor) -> Tensor:
    """Contiguous, and at an address that 16 divides, as all tensors but slices are.

    For other addresses Triton compiles other kernels; and a layer's slice of a stacked state would be at either kind,
    depending on B.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _some(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if tensor is None else tensor


def _forward(rule: str, path: str, h: Tensor) -> Callable[..., launch.Forward]:
    """The launcher, with its plan."""
    if path == "step":
        return partial(launch_step.step_forward, blocks=plan.step_blocks(h.element_size()))
    found = _sequence_plan(rule, h, backward=False)
    if isinstance(found, plan.Split):
        return partial(launch_split.split_forward, split=found)
    return partial(launch.sequence_forward, blocks=found)


def _backward(rule: str, path: str, h: Tensor) -> Callable[..., launch.Backward]:
    if path == "step":
        return partial(launch_step.step_backward, blocks=plan.step_blocks(h.element_size()))
    found = _sequence_plan(rule, h, backward=True)
    if isinstance(found, plan.Split):
        return partial(launch_split.split_backward, split=found)
    return partial(launch.sequence_backward, blocks=found)


def _sequence_plan(rule: str, h: Tensor, *, backward: bool) -> plan.Blocks | plan.Split:
    B, H = h.shape
    precision = matmul_precision(h.dtype, h.device)
    found = plan.sequence_plan(
        H, B, RULES[rule].gates, h.element_size(), gpu(h.device), precision=precision, backward=backward
    )
    if isinstance(found, str):  # dispatch asks before; not everyone comes that way
        raise RuntimeError(f"impl='triton' cannot run: {found}")
    return found


def check_alike(**tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors have one dtype and one device; the message names those that differ."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if len({(t.dtype, t.device) for t in given.values()}) > 1:
        listed = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in given.items())
        raise RuntimeError(f"expected all tensors to have the same dtype and device, got {listed}")
