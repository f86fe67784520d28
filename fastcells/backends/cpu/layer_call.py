"""One layer and direction in one call of C, its input projection included: what is small, and needs no gradient.

The tensors are checked here, and read where they lie; whatever is not as C reads it is left to the longer ways, which
copy it or say what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from fastcells.backends.cpu import buffers, native
from fastcells.backends.cpu.policy import packs, steps_at_once
from fastcells.spec import SPECS, State

if TYPE_CHECKING:
    from fastcells.kept_weights import Packed

FLOAT = 4  # bytes
LARGE = 1 << 14  # floats of memory that malloc might not keep from one call to the next
MOST_OF_ONE_CALL = 1 << 18  # floats of an input projection that C finds memory for, and makes as a whole
Small = tuple[bytes, bytes, Callable[..., Tensor], tuple[object, ...], tuple[object, ...] | None, int]
Place = tuple[int, int, int]  # address, and how far a step and a row lie apart, in floats

if native._cpu is not None:
    native._cpu.read_with(Tensor, Parameter, torch.empty(0, device="cpu").is_neg)


def shapes(*each: tuple[int, ...]) -> bytes:
    """Of tensors, as `_cpu.readable` compares them."""
    numbers = [number for shape in each for number in (len(shape), *shape)]
    return struct.pack(f"{len(numbers)}q", *numbers)


def dense(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of a new tensor."""
    strides = [1]
    for size in sizes[:0:-1]:
        strides.insert(0, strides[0] * size)
    return sizes, tuple(strides)


def empty_of() -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]:
    """What makes a tensor on the CPU of sizes, strides and dtype: as torch's compiler does, in half of the time."""
    return _filled if _fast_empty is None or torch.are_deterministic_algorithms_enabled() else _fast_empty


def _filled(sizes: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As a deterministic process wants it."""
    return torch.empty(sizes, dtype=dtype, device="cpu")


try:
    _fast_empty: Callable[..., Tensor] | None = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]
except AttributeError:  # a torch that has moved it
    _fast_empty = None


class Form:
    """What a call returns: the sizes and strides of its output and of each state; steps and rows of the output.

    shapes: of the weights and the initial states, for `_cpu.readable`.
    """

    __slots__ = ("last", "out", "row", "shapes", "time")

    def __init__(self, out: tuple[int, ...], time: int, row: int, last: tuple[int, ...], shapes: bytes) -> None:
        self.out, self.time, self.row = dense(out), time, row
        self.last, self.shapes = dense(last), shapes


class Plan:
    """Calls of one size: what does not depend on the tensors is found out once."""

    __slots__ = (
        "B",
        "H",
        "I",
        "T",
        "cell",
        "chunk",
        "kept",
        "large",
        "most",
        "packed",
        "row",
        "rows",
        "shapes",
        "tensors",
    )

    def __init__(self, cell: str, T: int, B: int, I: int, H: int, bias: bool) -> None:  # noqa: E741
        self.cell, self.T, self.B, self.I, self.H = native._NUMBERS[cell], T, B, I, H
        self.rows = rows = len(SPECS[cell].gates) * H
        self.row, self.packed, self.chunk = B * H * FLOAT, packs(T, B, H), steps_at_once(T, B, rows, I + H, False)
        self.most = native.layer_threads(self.packed, T, B, I, rows, H)
        self.large = T * B * rows > MOST_OF_ONE_CALL
        self.kept: Kept | None = None
        self.shapes = shapes((rows, I), (rows, H), *([(rows,)] * 2 if bias else []))
        self.tensors = 4 if bias else 2

    def small(self, states: int, batch_first: bool, form: Form, kept: bool = False, cell: bool = False) -> Small | None:
        """Of a layer or a cell, as `_cpu.small_layer` takes it; None where memory is worth a thought.

        The last number: the most threads. kept: whether its calls find their weights packed.
        """
        if self.large:
            return None
        sizes = native._instructions, self.cell, self.T, self.B, self.H, self.I, self.packed
        numbers = struct.pack("12q", *sizes, self.tensors, states, batch_first, form.time, form.row)
        out, last = ((*each, torch.float32) for each in (form.out, form.last))
        most = self.most
        if kept:
            self.kept = self.kept or Kept(self)
            most = self.kept.most
        return numbers, form.shapes, empty_of(), out, None if cell else last, most

    def small_layout(self) -> tuple[int, ...] | None:
        """The key of the panels that a packed layer of one direction reads, where `small` has its calls."""
        if self.kept is None or self.large:
            return None
        return 0, self.kept.vectors, native._instructions, self.cell

    def call(
        self,
        index: int,
        reverse: bool,
        x: Place,
        h0: int,
        c0: int,
        weights: Sequence[int],
        out: Place,
        h_n: int,
        c_n: int,
        packed: Packed | None = None,
    ) -> None:
        """h0, c0, h_n, c_n: the addresses of states, 0 where there is none.

        weights: those of w_ih, w_hh, and b_ih and b_hh where they are there, of layer and direction `index` after those
        before it. packed: where weights are kept, packed now if they are not there.
        """
        address, x_time, x_row = x
        first = index * self.tensors
        b_ih, b_hh = (weights[first + 2], weights[first + 3]) if self.tensors == 4 else (0, 0)
        to, out_time, out_row = out
        most, packs, chunk, filled, vectors, panels = self.most, self.packed, self.chunk, False, 0, None
        if packed is not None:
            kept = self.kept = self.kept or Kept(self)
            most, packs, chunk, vectors = kept.most, True, kept.chunk, kept.vectors
            key = index, vectors, native._instructions, self.cell
            panels = packed.panels.get(key)
            filled = panels is not None
            if panels is None:
                panels = torch.empty(kept.floats, dtype=torch.float32, device="cpu")
        projected = (chunk if packs else self.T) * self.B * self.rows
        memory = buffers.empty(projected) if projected >= LARGE else None
        native._cpu.layer(  # by position, without *: what is unpacked costs more than the rest of the call
            native._instructions,
            1 if most == 1 else native.no_more_than(most),
            self.cell,
            self.T,
            self.B,
            self.H,
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
            weights[first],
            weights[first + 1],
            b_ih,
            b_hh,
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
        sizes = plan.cell, plan.B, plan.H, plan.I
        self.vectors, self.floats = native._cpu.layer_panels(native._instructions, self.most, *sizes)


def one_direction(
    cell: str, x: Tensor, state: State, given: Sequence[Tensor], reverse: bool, graph: bool
) -> tuple[Tensor, State] | None:
    """`fastcells.one_direction.run` for x [T, B, I] and a state of [B, H] each; None where C cannot read a tensor."""
    (T, B, I), H = x.shape, given[1].shape[1]  # noqa: E741
    if not (T and B and I and H):
        return None
    plan, count = Plan(cell, T, B, I, H, len(given) == 4), len(given)
    own = native._cpu.place(graph, x, 0)
    found = native._cpu.readable(graph, [*given, *state], plan.shapes + shapes(*[(B, H)] * len(state)))
    if own is None or found is None:
        return None
    out, last = x.new_empty(T, B, H), tuple([x.new_empty(B, H) for _ in state])
    (h0, c0), (h_n, c_n) = ((*each, 0)[:2] for each in (found[count:], [s.data_ptr() for s in last]))
    plan.call(0, reverse, (own[0], *own[5:]), h0, c0, found, (out.data_ptr(), B * H, H), h_n, c_n)
    return out, last
