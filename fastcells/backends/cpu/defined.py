"""Defined cells in C: the programs that are made of a rule, and the kernels' calls with them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, Trace
from fastcells.backends.cpu import checks as check
from fastcells.backends.cpu import native
from fastcells.backends.cpu.arguments import Recurrence, Shapes, Tensors
from fastcells.backends.cpu.layout import BackwardGraphs, ForwardGraphs, program, sizes_of
from fastcells.defined.rule import Rule
from fastcells.spec import CellSpec, State
from fastcells.spec.recurrent import DENSE, DIAGONAL, Heads

MOST_GATES = 4  # of a product's tile (kernels/cpu/gemm.h)
MOST_PLACES = 256  # (kernels/cpu/program.h)
ELEMENTWISE = 32  # multiplications that take about as long as a gate's part of the update


class Programs:
    """Of one pass: first and second, None where a cell has one product."""

    def __init__(self, graphs: ForwardGraphs | BackwardGraphs, sections: dict[str, int], carried: int) -> None:
        self.first = program(graphs.first, sections)
        self.second = None if graphs.second is None else program(graphs.second, sections)
        self.carried = carried
        words = [int(p[:2].sum()) for p in (self.first, self.second) if p is not None]
        self.places = sum(sections.values()) + max(words)


class DefinedCell:
    """A spec's programs, and the two kernels run with them."""

    def __init__(self, spec: CellSpec, rule: Rule) -> None:
        self.spec, self.rule = spec, rule
        self.diagonal = spec.recurrent is DIAGONAL
        self.heads = spec.recurrent.heads if isinstance(spec.recurrent, Heads) else 1
        self.sizes = sizes_of(rule, self.diagonal)
        self._plans: dict[tuple[str, bool, bool], Recurrence] = {}
        self._forward: dict[tuple[bool, bool], Programs] = {}
        facts = {
            "has_product": not self.diagonal,
            "has_extra": self.sizes.parameters > 0,
            "has_saved": self.sizes.saved > 0,
            "other_states": self.sizes.states > 1,
            "other_gradient": self.sizes.apart,
            "second_product": self.sizes.second_gates > 0,
        }
        self.facts = frozenset(name for name, holds in facts.items() if holds)

    @cached_property
    def obstacle(self) -> str | None:
        """Why C cannot run this cell, or None."""
        if self.sizes.first_gates > MOST_GATES:
            return f"C multiplies by the recurrent weights of at most {MOST_GATES} gates at once"
        places = max(p.places for p in (self.forward_programs(True, True), self.backward_programs))
        most = max(self.sizes.gates, self.sizes.states, self.sizes.saved, self.sizes.parameters)
        if places > MOST_PLACES or most > MOST_PLACES // 8:
            return f"the cell has more values than C has room for: {places} of {MOST_PLACES}"
        return None

    def forward_programs(self, bias: bool, save: bool) -> Programs:
        if (bias, save) not in self._forward:
            graphs = ForwardGraphs(self.rule, self.sizes, bias, save)
            sections = self.sizes.forward_sections(graphs.carried, bias)
            self._forward[bias, save] = Programs(graphs, sections, graphs.carried)
        return self._forward[bias, save]

    @cached_property
    def backward_programs(self) -> Programs:
        return Programs(BackwardGraphs(self.rule, self.sizes), self.sizes.backward_sections(), 0)

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        given = forward_tensors(self.spec, inputs)
        return trace_of(self.run("defined_forward", given, inputs.steps.reverse, save))

    def backward(self, inputs: Inputs, trace: Trace, d_hidden: Tensor, d_last: State) -> Gradients:
        given = backward_tensors(self.spec, inputs, trace, d_hidden, d_last)
        return gradients_of(self.spec, self.run("defined_backward", given, inputs.steps.reverse, save=False))

    def run(self, kernel: str, given: Tensors, reverse: bool, save: bool) -> Tensors:
        """What C has written. given: what it reads, but for the programs."""
        sizes, forward = self.sizes, kernel == "defined_forward"
        programs = self.forward_programs(given["b"] is not None, save) if forward else self.backward_programs
        x, state = given["x" if forward else "d_hidden"], given["state"]
        assert x is not None and state is not None
        (T, B), H = x.shape[:2], state.shape[-1]
        plan = self.plan(kernel, save, save or given["lengths"] is not None)
        given = given | {"program": programs.first, "second_program": programs.second}
        shapes = self.shapes(T, B, H) | {"P": (len(programs.first),)}
        second = 0 if programs.second is None else len(programs.second)
        shapes["P2"] = (second,)
        read = plan.read(given, shapes)
        outputs = plan.allocate(x, shapes)
        written = {name: t for name, t, _ in outputs}
        addresses = check.written(*outputs)
        if T and B and H:
            per_token = sizes.gates * H * (ELEMENTWISE if self.diagonal else H // self.heads)
            counts = [
                self.heads,
                sizes.gates,
                sizes.first_gates,
                sizes.second_gates,
                sizes.states,
                sizes.saved,
                sizes.parameters,
            ]
            words = [programs.carried, len(programs.first), second]
            tensors = [0 if t is None else t.data_ptr() for t in read] + [*addresses.values()]
            native.call(kernel, T * B * per_token, T, B, H, reverse, *counts, *words, *tensors)
        else:
            first, last = ("state", "last") if forward else ("d_last", "d_state")
            if (to := written[last]) is not None and (source := given[first]) is not None:
                to.copy_(source)
            if written.get("d_extra") is not None:
                written["d_extra"].zero_()  # type: ignore[union-attr]
        return written

    def plan(self, kernel: str, save: bool, apart: bool) -> Recurrence:
        key = kernel, save, apart
        if key not in self._plans:
            more = {name for name, holds in (("save", save), ("apart", apart)) if holds}
            self._plans[key] = Recurrence(kernel, self.facts | more)
        return self._plans[key]

    def shapes(self, T: int, B: int, H: int) -> Shapes:
        """Those of arguments.h, by their names there."""
        sizes = self.sizes
        gates, states = sizes.gates * H, sizes.states
        return {
            "B": (B,),
            "T B": (T, B),
            "N B H": (states, B, H),
            "N-1 T B H": (states - 1, T, B, H),
            "T B H": (T, B, H),
            "T B G*H": (T, B, gates),
            "T B S H": (T, B, sizes.saved, H),
            "E H": (sizes.parameters, H),
            "G*H": (gates,),
            "heads G*D D": (self.heads, gates // self.heads, H // self.heads),
        }


def forward_tensors(spec: CellSpec, inputs: Inputs) -> Tensors:
    """What the forward kernel reads, but for the programs."""
    given: Tensors = {"x": inputs.x.x, "b": inputs.weights.b_hh}
    return given | _tensors_of_both(spec, inputs)


def backward_tensors(spec: CellSpec, inputs: Inputs, trace: Trace, d_hidden: Tensor, d_last: State) -> Tensors:
    """What the backward kernel reads, but for the programs."""
    others, saved = trace.saved
    given: Tensors = {"d_hidden": d_hidden, "d_last": _stacked(d_last)}
    given |= {"hidden": trace.hidden, "others": others, "saved": saved}
    return given | _tensors_of_both(spec, inputs)


def _tensors_of_both(spec: CellSpec, inputs: Inputs) -> Tensors:
    weights, state, H = inputs.weights, inputs.state, inputs.state[0].shape[-1]
    given: Tensors = {"state": _stacked(state), "lengths": inputs.steps.lengths, "resets": inputs.steps.resets}
    w = weights.w_hh
    if spec.recurrent is DIAGONAL:
        rows = [*(p.expand(H).unsqueeze(0) for p in weights.extra), w.view(-1, H)]
        return given | {"w": None, "extra": torch.cat(rows) if len(rows) > 1 else rows[0]}
    w = w.unsqueeze(0) if spec.recurrent is DENSE else w
    return given | {"w": w, "extra": torch.stack(weights.extra) if weights.extra else None}


def trace_of(written: Tensors) -> Trace:
    """From what the forward kernel writes."""
    out, hidden, others, saved, last = written.values()
    assert out is not None and last is not None
    return Trace(out if hidden is None else hidden, _apart(last), (others, saved), out)


def gradients_of(spec: CellSpec, written: Tensors) -> Gradients:
    """From what the backward kernel writes. What a caller gets is in memory of its own."""
    d_x, d_gates, d_state, d_extra, operand = written.values()
    assert d_x is not None and d_state is not None
    own = len(spec.extra)
    extra = () if d_extra is None else _apart(d_extra[:own])
    d_w = d_extra[own:].clone().flatten() if spec.recurrent is DIAGONAL and d_extra is not None else None
    return Gradients(d_x, d_x if d_gates is None else d_gates, _apart(d_state), extra, operand, d_w)


def _stacked(state: State) -> Tensor:
    """[N, B, H]"""
    return state[0].unsqueeze(0) if len(state) == 1 else torch.stack(state)


def _apart(stacked: Tensor) -> State:
    return tuple(t.clone() for t in stacked)


_cells: dict[int, DefinedCell] = {}  # by the spec's identity: each is kept by its cell


def defined_cell(spec: CellSpec) -> DefinedCell:
    """One for all calls of a cell."""
    cell = _cells.get(id(spec))
    if cell is None:
        assert spec.rule is not None
        cell = _cells[id(spec)] = DefinedCell(spec, spec.rule)
    return cell
