"""The Triton recurrence as operators of torch.library, so that torch.compile and CUDA graphs see one operator each.

`fastcells::recurrence_forward` and `fastcells::recurrence_backward`. A tensor that a cell does not have (c of a GRU,
say) is passed as None and returned empty. Autograd is `torch_impl/recurrence.py`'s, which calls these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.dispatch import capability
from fastcells.kernels import gru, launch, lstm, plan, rnn
from fastcells.kernels.rule import UpdateRule

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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden [T, B, H], cells [T, B, H], saved [T, B, saved, H], h_n and c_n [B, H].

    x: [T, B, G*H]. h0, c0: [B, H]. w: [G*H, H]. b: [G*H]. lengths: int32 [B]. path: "sequence" or "step".
    """
    check_alike(x_proj=x, h0=h0, c0=c0, w_hh=w, b_hh=b)
    run = launch.sequence_forward if path == "sequence" else launch.step_forward
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever the tensors' is
        out = run(
            RULES[rule],
            x.contiguous(),
            tuple(s.contiguous() for s in (h0, c0) if s is not None),
            w.contiguous(),
            None if b is None else b.contiguous(),
            lengths,
            reverse=reverse,
            save=save,
            blocks=_blocks(rule, path, h0),
            precision=matmul_precision(x),
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, (B, H), width = x.shape[0], h0.shape, RULES[rule].saved
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
    run = launch.sequence_backward if path == "sequence" else launch.step_backward
    with torch.cuda.device_of(d_hidden):
        d_x, d_gates, d_state = run(
            RULES[rule],
            launch.Forward(hidden, cells, saved, ()),
            d_hidden.contiguous(),
            tuple(d.contiguous() for d in (d_h_n, d_c_n) if d is not None),
            tuple(s.contiguous() for s in (h0, c0) if s is not None),
            w.contiguous(),
            lengths,
            reverse=reverse,
            blocks=_blocks(rule, path, h0, backward=True),
            precision=matmul_precision(d_hidden),
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


def _some(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for None."""
    return like.new_empty(0) if tensor is None else tensor


def _blocks(rule: str, path: str, h: Tensor, *, backward: bool = False) -> plan.Blocks:
    size = h.element_size()
    if path == "step":
        return plan.step_blocks(size)
    blocks = plan.sequence_blocks(h.shape[1], RULES[rule].gates, size, capability(h.device), backward=backward)
    assert isinstance(blocks, plan.Blocks), blocks  # dispatch has asked before
    return blocks


def matmul_precision(x: Tensor) -> str:
    """Triton's input_precision for matmuls of x: tf32 where torch's own switch for RNNs allows it."""
    if x.dtype != torch.float32 or x.device.type != "cuda":
        return "ieee"
    return float32_precision()


def float32_precision() -> str:
    """What `torch.backends.cudnn.rnn.fp32_precision` and `allow_tf32` ask for: "tf32" or "ieee"."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def check_alike(**tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors have one dtype and one device; the message names those that differ."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if len({(t.dtype, t.device) for t in given.values()}) > 1:
        listed = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in given.items())
        raise RuntimeError(f"expected all tensors to have the same dtype and device, got {listed}")
