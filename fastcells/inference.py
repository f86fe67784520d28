"""The short way of layers and cells: float32 on a CPU, without gradients, in one call of C each.

What such a call computes takes microseconds, and so does every question that Python asks. This way asks only what has
to be known to go it; any doubt leaves a call to the long way, which reaches the same kernel where it may, and raises
what there is to be raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from fastcells import dispatch
from fastcells.backends.base import Call
from fastcells.backends.cpu import native
from fastcells.backends.cpu.layer_call import FLOAT, Form, Plan, empty_of, shapes
from fastcells.modes import watched
from fastcells.spec import CellSpec, State
from fastcells.tuning import verdicts

if TYPE_CHECKING:
    from fastcells.cells import Cell
    from fastcells.stack import Layer

SHORT: set[type] = set()  # classes whose methods are this package's own; what is derived from them goes the long way
MOST_KEPT = 4096

CELL_WEIGHTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"

_plans: dict[tuple[object, ...], Any] = {}  # None: another way than C is chosen; what `small_layer` takes, by its key


class Plans:
    """Of a stack of layers, or a cell: the plan of the first layer and of those above it."""

    __slots__ = ("between", "cell", "first", "layer", "states", "tensors", "upper")

    def __init__(self, spec: CellSpec, T: int, B: int, I: int, H: int, L: int, D: int, bias: bool) -> None:  # noqa: E741
        self.first, self.upper = Plan(spec.name, T, B, I, H, bias), Plan(spec.name, T, B, D * H, H, bias)
        self.states = n = spec.num_states
        self.tensors, weights = self.first.tensors * L * D, self.first.shapes * D + self.upper.shapes * (L * D - D)
        width, last, one = D * H, (L * D, B, H), (L * D, H)
        self.between = time_first = Form((T, B, width), B * width, width, last, weights + shapes(*[last] * n))
        batch_first = Form((B, T, width), width, T * width, last, time_first.shapes)
        unbatched = Form((T, width), width, width, one, weights + shapes(*[one] * n))
        # By the number of the input's dimensions, of a layer with time or batch first.
        self.layer = {(3, False): time_first, (3, True): batch_first, (2, False): unbatched, (2, True): unbatched}
        self.cell = [Form(own, 0, H, own, weights + shapes(*[own] * n)) for own in ((H,), (B, H))]

    def addresses(self, graph: bool, tensors: list[Any], given: bool, form: Form) -> tuple[int, ...] | None:
        """Of the weights, and of h and c behind them, 0 where none is given; None where C cannot read a tensor."""
        if given and len(tensors) != self.tensors + self.states:
            return None
        found = native._cpu.readable(graph, tensors, form.shapes)
        return found if found is None or (given and self.states == 2) else (*found, 0) if given else (*found, 0, 0)


def layer(module: Layer, x: Tensor | PackedSequence, hx: Any) -> tuple[Tensor, Any] | None:
    """`forward` without options; None where the long way has to be gone. hx: a tensor, of an LSTM two, or None."""
    if type(module) not in SHORT:
        return None
    own, graph = module._parameters, torch.is_grad_enabled()
    try:
        weights = [own[name] for name in module._flat_weights_names]
    except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
        return None
    if (
        (graph and weights[0] is not None and weights[0].requires_grad)
        or watched()
        or native._cpu is None
        or not _is_simple(module)
    ):
        return None
    tensors, batch_first, keeper = _with_state(weights, hx), bool(module.batch_first), module._keeper
    shape = x.shape if type(x) is Tensor or type(x) is Parameter else ()
    key = (
        *(shape, batch_first, module.impl, module.mode, module.reset_after, module.input_size, module.hidden_size),
        *(module.num_layers, module.bidirectional, len(weights), torch.get_num_threads(), native._instructions),
        *(verdicts.changes(), torch.are_deterministic_algorithms_enabled(), keeper is None),
    )
    small = _plans.get(key)
    packed = None if keeper is None else keeper.packed  # held for as long as C compares addresses with its own
    kept = None if packed is None else packed.small.get(key)
    if small is not None and (keeper is None or kept is not None):
        found: tuple[Tensor, Any] | None = native._cpu.small_layer(
            small, graph, x, tensors, kept, native.no_more_than(small[5])
        )
        if found is not None:
            return found
    place = native._cpu.place(graph, x, batch_first)
    if place is None:
        return None
    address, dims, T, B, I, x_time, x_row = place  # noqa: E741
    L, D = module.num_layers, 2 if module.bidirectional else 1
    if dims < 2 or module.input_size != I:
        return None
    plans = _plans_of(module.impl, module._spec(), T, B, I, module.hidden_size, L, D, weights, keeper is not None)
    if plans is None:
        return None
    form, new = plans.layer[dims, batch_first], empty_of()
    each = plans.addresses(graph, tensors, hx is not None, form)
    if each is None:
        return None
    if small is None and L * D == 1:
        _plans[key] = plans.first.small(plans.states, batch_first, form, keeper is not None)
    packed = None if keeper is None else keeper.current(weights, each[: len(weights)], L * D)  # type: ignore[arg-type]
    sizes, strides = form.last
    h, c = new(sizes, strides, torch.float32), None if plans.states == 1 else new(sizes, strides, torch.float32)
    h0, c0, h_n, c_n = each[-2], each[-1], h.data_ptr(), 0 if c is None else c.data_ptr()
    plan, row, source, out = plans.first, plans.first.row, (address, x_time, x_row), h
    for i in range(L):
        below = out  # keeps the memory that is read
        at = form if i == L - 1 else plans.between
        sizes, strides = at.out
        out = new(sizes, strides, torch.float32)
        to = out.data_ptr(), at.time, at.row
        plan.call(i * D, False, source, h0, c0, each, to, h_n, c_n, packed)
        if D == 2:
            h0, c0, h_n, c_n = h0 and h0 + row, c0 and c0 + row, h_n + row, c_n and c_n + row
            other = to[0] + plan.H * FLOAT, to[1], to[2]
            plan.call(2 * i + 1, True, source, h0, c0, each, other, h_n, c_n, packed)
        if i < L - 1:
            h0, c0, h_n, c_n = h0 and h0 + row, c0 and c0 + row, h_n + row, c_n and c_n + row
            plan, source = plans.upper, to
    del below
    if packed is not None and L * D == 1 and (layout := plan.small_layout()) is not None:
        packed.remember(key, layout)
    return out, h if c is None else (h, c)


def cell(module: Cell, x: Tensor, hx: State | None) -> State | None:
    """A cell's step; None where the long way has to be gone."""
    if type(module) not in SHORT or module.impl not in ("auto", "cpu"):
        return None
    own, graph = module._parameters, torch.is_grad_enabled()
    weights = [own.get(name) for name in (CELL_WEIGHTS if module.bias else CELL_WEIGHTS[:2])]
    if weights[0] is None or (graph and weights[0].requires_grad) or watched() or native._cpu is None:
        return None
    spec, tensors = module._spec(), _with_state(weights, hx)
    shape = x.shape if type(x) is Tensor or type(x) is Parameter else ()
    key = (
        *("cell", shape, module.impl, spec.name, module.input_size, module.hidden_size, len(weights)),
        *(torch.get_num_threads(), native._instructions, verdicts.changes()),
        torch.are_deterministic_algorithms_enabled(),
    )
    small = _plans.get(key)
    if small is not None:
        threads = native.no_more_than(small[5])
        found: State | None = native._cpu.small_layer(small, graph, x, tensors, None, threads)
        if found is not None:
            return found
    place = native._cpu.place(graph, x, False)
    if place is None:
        return None
    address, dims, B, _, I, x_row, _ = place  # noqa: E741
    if dims > 2 or module.input_size != I:
        return None
    plans = _plans_of(module.impl, spec, 1, B, I, module.hidden_size, 1, 1, weights)
    if plans is None:
        return None
    form, new = plans.cell[dims - 1], empty_of()
    each = plans.addresses(graph, tensors, hx is not None, form)
    if each is None:
        return None
    if small is None:
        _plans[key] = plans.first.small(plans.states, False, form, cell=True)
    sizes, strides = form.out
    h, c = new(sizes, strides, torch.float32), None if plans.states == 1 else new(sizes, strides, torch.float32)
    to, c_n = (h.data_ptr(), 0, form.row), 0 if c is None else c.data_ptr()
    plans.first.call(0, False, (address, 0, x_row), each[-2], each[-1], each, to, 0, c_n)
    return (h,) if c is None else (h, c)


def _with_state(weights: list[Any], hx: Any) -> list[Any]:
    """The tensors that a call reads, beside its input."""
    return weights if hx is None else [*weights, *hx] if isinstance(hx, tuple) and hx else [*weights, hx]


def keeps(module: Layer) -> bool:
    """Whether a call that goes the short way has packed weights in hand, or leaves them for the next one."""
    own = module._parameters
    there = all(own.get(name) is not None for name in module._flat_weights_names)
    return module.packed and there and _is_simple(module)


def _is_simple(module: Layer) -> bool:
    """Whether a layer does nothing beside its recurrences."""
    if module.training and (module._regularised or (module.dropout and module.num_layers > 1)):
        return False
    return not (module.learned_state or module.proj_size or module.return_states) and module.impl in ("auto", "cpu")


def _plans_of(
    impl: str,
    spec: CellSpec,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    L: int,
    D: int,
    weights: Sequence[Tensor | None],
    packed: bool = False,
) -> Plans | None:
    """Plans where one call of C for each layer and direction is what `dispatch.choose` has chosen, or chooses now."""
    tensors, threads = len(weights), torch.get_num_threads()
    key = (impl, spec.name, T, B, I, H, L, D, tensors, threads, native._instructions, packed, verdicts.changes())
    try:
        return _plans[key]
    except KeyError:
        pass
    if not (T and B and I and H):
        return None
    found, count = True, tensors // (L * D)
    for i in (0,) if L == 1 else (0, D):
        w_ih, w_hh = weights[i * count : i * count + 2]
        if w_ih is None or w_hh is None or w_ih.dim() != 2 or w_hh.dim() != 2:
            return None
        found &= dispatch.choose(Call(impl, spec, False, T, B, w_ih, w_hh, directions=D, packed=packed)).path == "layer"
    if len(_plans) >= MOST_KEPT:
        _plans.clear()
    known = (*key[:-1], verdicts.changes())  # asked again: a trial may have been made
    _plans[known] = Plans(spec, T, B, I, H, L, D, bias=count == 4) if found else None
    return _plans[known]
