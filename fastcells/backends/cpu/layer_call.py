"""One layer and direction in one call of C, its input projection included: what is small, and needs no gradient.

The tensors are checked here, and read where they lie; whatever is not as C reads it is left to the longer ways, which
copy it or say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from fastcells.backends.cpu import buffers, native
from fastcells.backends.cpu.policy import packs, steps_at_once
from fastcells.spec import SPECS, State
from fastcells.tensor_memory import SKIPPED, has_memory

if TYPE_CHECKING:
    from fastcells.kept_weights import Packed

FLOAT = 4  # bytes
LARGE = 1 << 14  # floats of memory that malloc might not keep from one call to the next
Place = tuple[int, int, int]  # address, and how far a step and a row lie apart, in floats


class Plan:
    """Calls of one size: what does not depend on the tensors is found out once."""

    __slots__ = ("B", "H", "I", "T", "bias", "chunk", "kept", "most", "numbers", "packed", "row", "rows")

    def __init__(self, cell: str, T: int, B: int, I: int, H: int) -> None:  # noqa: E741
        self.T, self.B, self.I, self.H = T, B, I, H
        self.rows = len(SPECS[cell].gates) * H
        self.bias, self.row = (self.rows,), B * H * FLOAT
        self.packed, self.chunk = packs(T, B, H), steps_at_once(T, B, self.rows, I + H, False)
        self.numbers = native._NUMBERS[cell], T, B, H
        self.most = native.layer_threads(self.packed, T, B, I, self.rows, H)
        self.kept: Kept | None = None

    def weights(self, given: Sequence[Tensor | None], graph: bool) -> tuple[int, ...] | None:
        """The addresses of w_ih, w_hh, and b_ih and b_hh where they are there; None where C cannot read one.

        graph: whether gradients are recorded.
        """
        w_ih, w_hh = readable(given[0], (self.rows, self.I), graph), readable(given[1], (self.rows, self.H), graph)
        if len(given) == 2:
            return (w_ih, w_hh, 0, 0) if w_ih and w_hh else None
        b_ih, b_hh = readable(given[2], self.bias, graph), readable(given[3], self.bias, graph)
        return (w_ih, w_hh, b_ih, b_hh) if w_ih and w_hh and b_ih and b_hh else None

    def call(
        self,
        reverse: bool,
        x: Place,
        h0: int,
        c0: int,
        w: tuple[int, ...],
        out: Place,
        h_n: int,
        c_n: int,
        packed: Packed | None = None,
        index: int = 0,
    ) -> None:
        """h0, c0, h_n, c_n: the addresses of states, 0 where there is none.

        packed: where weights are kept, packed now if they are not there. index: of the layer and direction.
        """
        address, x_time, x_row = x
        to, out_time, out_row = out
        most, packs, chunk, filled, vectors, panels = self.most, self.packed, self.chunk, False, 0, None
        if packed is not None:
            kept = self.kept = self.kept or Kept(self)
            most, packs, chunk, vectors = kept.most, True, kept.chunk, kept.vectors
            key = index, vectors, native._instructions
            panels = packed.panels.get(key)
            filled = panels is not None
            if panels is None:
                panels = torch.empty(kept.floats, dtype=torch.float32, device="cpu")
        projected = (chunk if packs else self.T) * self.B * self.rows
        memory = buffers.empty(projected) if projected >= LARGE else None
        native._cpu.layer(
            native._instructions,
            most if most == 1 else native.no_more_than(most),
            *self.numbers,
            reverse,
            self.I,
            packs,
            filled,
            vectors,
            chunk,
            x_time,
            x_row,
            out_time,
            out_row,
            address,
            h0,
            c0,
            *w,
            to,
            h_n,
            c_n,
            0 if memory is None else memory.data_ptr(),
            0 if panels is None else panels.data_ptr(),
        )
        if packed is not None and panels is not None and not filled:
            packed.add(key, panels)


class Kept:
    """Of a plan's calls with weights that are kept packed: threads, steps, and the order and size of what C reads."""

    __slots__ = ("chunk", "floats", "most", "vectors")

    def __init__(self, plan: Plan) -> None:
        self.most = native.layer_threads(True, plan.T, plan.B, plan.I, plan.rows, plan.H)
        self.chunk = steps_at_once(plan.T, plan.B, plan.rows, plan.I + plan.H, True)
        sizes = plan.numbers[0], plan.B, plan.H, plan.I
        self.vectors, self.floats = native._cpu.layer_panels(native._instructions, self.most, *sizes)


def readable(t: Tensor | None, shape: tuple[int, ...], graph: bool) -> int:
    """The address of a tensor that C can read where it lies, or 0."""
    kind = type(t)
    if (
        (kind is Parameter or kind is Tensor)
        and t.dtype is torch.float32  # type: ignore[union-attr]
        and t.is_cpu  # type: ignore[union-attr]
        and t.shape == shape  # type: ignore[union-attr]
        and t.is_contiguous()  # type: ignore[union-attr]
        and not (graph and t.requires_grad)  # type: ignore[union-attr]
        and not t.is_neg()  # type: ignore[union-attr]
    ):
        address = t.data_ptr()  # type: ignore[union-attr]
        there = address >= SKIPPED or has_memory(t, address)  # type: ignore[arg-type]
        return address if there and not address & (FLOAT - 1) else 0
    return 0


def place(x: Tensor, time: int, graph: bool) -> Place | None:
    """Where an input [T, B, I] or, with time 1, [B, T, I] lies, of which only features have to be side by side."""
    kind = type(x)
    if (kind is not Tensor and kind is not Parameter) or x.dtype is not torch.float32 or not x.is_cpu:
        return None
    strides = x.stride()
    if (strides[2] != 1 and x.size(2) != 1) or (graph and x.requires_grad) or x.is_neg():
        return None
    address = x.data_ptr()
    there = address >= SKIPPED or has_memory(x, address)
    return (address, strides[time], strides[1 - time]) if there and not address & (FLOAT - 1) else None


def one_direction(
    cell: str, x: Tensor, state: State, given: Sequence[Tensor], reverse: bool, graph: bool
) -> tuple[Tensor, State] | None:
    """`fastcells.one_direction.run` for x [T, B, I] and a state of [B, H] each; None where C cannot read a tensor."""
    (T, B, I), H = x.shape, given[1].shape[1]  # noqa: E741
    if not (T and B and I and H):
        return None
    plan = Plan(cell, T, B, I, H)
    w, own = plan.weights(given, graph), place(x, 0, graph)
    start = [readable(s, (B, H), graph) for s in state]
    if w is None or own is None or not all(start):
        return None
    out, last = x.new_empty(T, B, H), tuple([x.new_empty(B, H) for _ in start])
    ends = [s.data_ptr() for s in last]
    (h0, c0), (h_n, c_n) = ((*each, 0)[:2] for each in (start, ends))
    plan.call(reverse, own, h0, c0, w, (out.data_ptr(), B * H, H), h_n, c_n)
    return out, last
