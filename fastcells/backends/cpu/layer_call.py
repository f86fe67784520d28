"""One layer and direction in one call of C, its input projection included: what is small, and needs no gradient.

The tensors are checked here, and read where they lie; whatever is not as C reads it is left to the longer ways, which
copy it or say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from fastcells.backends.cpu import native
from fastcells.backends.cpu.policy import packs
from fastcells.spec import SPECS, State

Place = tuple[int, int, int]  # address, and how far a step and a row lie apart, in floats


def readable(t: Tensor, shape: tuple[int, ...], graph: bool) -> int:
    """The address of a tensor that C can read where it lies, or 0. graph: whether gradients are recorded."""
    kind = type(t)
    if (
        (kind is Parameter or kind is Tensor)
        and t.dtype is torch.float32
        and t.is_cpu
        and t.shape == shape
        and t.is_contiguous()
        and not (graph and t.requires_grad)
        and not t.is_neg()
    ):
        address = t.data_ptr()  # 0 where there is no memory
        return 0 if address & 3 else address
    return 0


def weights(given: Sequence[Tensor], rows: int, inputs: int, hidden: int, graph: bool) -> tuple[int, ...] | None:
    """The addresses of w_ih, w_hh, and b_ih and b_hh where they are there; None where C cannot read one."""
    w_ih, w_hh = readable(given[0], (rows, inputs), graph), readable(given[1], (rows, hidden), graph)
    if not (w_ih and w_hh):
        return None
    if len(given) == 2:
        return w_ih, w_hh, 0, 0
    b_ih, b_hh = readable(given[2], (rows,), graph), readable(given[3], (rows,), graph)
    return (w_ih, w_hh, b_ih, b_hh) if b_ih and b_hh else None


def call(
    cell: str,
    sizes: tuple[int, int, int, int],
    reverse: bool,
    x: Place,
    start: tuple[int, int],
    w: tuple[int, ...],
    out: Place,
    last: tuple[int, int],
) -> None:
    """sizes: T, B, I and H, none of them 0. start, last: the addresses of h and c, 0 where there is none."""
    T, B, I, H = sizes  # noqa: E741
    rows = len(SPECS[cell].gates) * H
    packed = packs(T, B, H)
    module = native._cpu
    module.layer(
        native._instructions,
        native.layer_threads(packed, T, B, I, rows, H),
        native._NUMBERS[cell],
        T,
        B,
        H,
        reverse,
        I,
        packed,
        x[1],
        x[2],
        out[1],
        out[2],
        x[0],
        *start,
        *w,
        out[0],
        *last,
    )


def one_direction(
    cell: str, x: Tensor, state: State, given: Sequence[Tensor], reverse: bool, graph: bool
) -> tuple[Tensor, State] | None:
    """`fastcells.one_direction.run` for x [T, B, I] and a state of [B, H] each; None where C cannot read a tensor."""
    T, B, I = x.shape  # noqa: E741
    H = given[1].shape[1]
    w = weights(given, len(SPECS[cell].gates) * H, I, H, graph)
    own = place(x, 0, graph)
    start = [readable(s, (B, H), graph) for s in state]
    if w is None or own is None or not all(start) or T * B * I * H == 0:
        return None
    out = x.new_empty(T, B, H)
    last = tuple([x.new_empty(B, H) for _ in start])
    pairs = [(start[0], last[0].data_ptr()), (start[1], last[1].data_ptr()) if len(start) == 2 else (0, 0)]
    (h0, h_n), (c0, c_n) = pairs
    call(cell, (T, B, I, H), reverse, own, (h0, c0), w, (out.data_ptr(), B * H, H), (h_n, c_n))
    return out, last


def place(x: Tensor, time: int, graph: bool) -> Place | None:
    """Where an input [T, B, I] or, with time 1, [B, T, I] lies, of which only features have to be side by side."""
    kind = type(x)
    if (kind is not Tensor and kind is not Parameter) or x.dtype is not torch.float32 or not x.is_cpu:
        return None
    strides = x.stride()
    if (strides[2] != 1 and x.size(2) != 1) or (graph and x.requires_grad) or x.is_neg():
        return None
    address = x.data_ptr()
    return None if address == 0 or address & 3 else (address, strides[time], strides[1 - time])
