"""A rule's forward as a list of torch calls that write into buffers, for the loop over time.

Every value of a step lives in a register: a gate's place in the buffer that W_hh's product is written to, a buffer of
its own, or one that comes and goes. A value takes the place of an operand that nobody reads any more; so what is saved
of `sigmoid(W_ih x + W_hh h)` is the gates' buffer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcells.defined.evaluate import FUNCTIONS
from fastcells.defined.graph import LEAVES, LOGICAL, reached
from fastcells.defined.rule import OPERAND, Rule

Register = tuple[Any, ...]  # ("gate", k), ("gates", k, l), ("x", k), ("input", name), ("new", name), and so on


def _minus_product(base: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(base, a, b, value=-1, out=out)


CALLS: dict[str, Callable[..., Tensor]] = {
    **FUNCTIONS,
    "relu": partial(torch.clamp_min, min=0),
    "addcmul": torch.addcmul,
    "minus_product": _minus_product,
    "lerp": torch.lerp,
    "copy": lambda x, out: out.copy_(x),
}


@dataclass(frozen=True)
class Call:
    """`out = op(*args)`."""

    op: str
    args: tuple[Register, ...]
    out: Register


@dataclass
class Program:
    """The calls of a step: `early` up to the operand of a second product, if the cell has one, and `late`.

    once: what depends on parameters alone, of which each call's result is new memory.
    in_gates: whether the gates' buffer holds what is saved, and is kept whole. saved: where each saved value is.
    own: how many buffers of their own saved values have; scratch: how many pass; truths: how many of truth values.
    constants: by register.
    """

    once: list[Call] = field(default_factory=list)
    early: list[Call] = field(default_factory=list)
    late: list[Call] = field(default_factory=list)
    in_gates: bool = True
    saved: dict[str, Register] = field(default_factory=dict)
    operand: Register | None = None
    own: int = 0
    scratch: int = 0
    truths: int = 0
    constants: dict[Register, float] = field(default_factory=dict)

    def registers(self) -> set[Register]:
        """All that the calls of a step name."""
        calls = (*self.early, *self.late)
        return {register for call in calls for register in (*call.args, call.out)} | {self.operand or ("none",)}


def compile_rule(rule: Rule) -> Program:
    """The program with the gates' buffer kept, if all of it is of use to the backward, or else without."""
    program = _Compiler(rule, in_gates=True).program
    kept = {register for register in program.saved.values() if register[0] == "gate"}
    return program if len(kept) == len(rule.gates) else _Compiler(rule, in_gates=False).program


class _Compiler:
    def __init__(self, rule: Rule, in_gates: bool) -> None:
        self.rule, self.program = rule, Program(in_gates=in_gates)
        self.graph = rule.joined()
        operand = dict(self.graph.outputs).get(OPERAND)
        self.nodes = self.graph.nodes
        self.left = self.graph.uses()  # how often a value will still be read
        self.rows = self._per_row()
        self.free: list[Register] = []
        self.at: dict[int, Register] = {}
        self.fused: dict[int, tuple[str, tuple[int, ...]]] = {}
        results = self.graph.outputs[: len(rule.states)]
        self.saved = {place: name for name, place in self.graph.outputs[len(rule.states) :] if name != OPERAND}
        self.new: dict[int, str] = {}
        for (_, place), state in zip(results, rule.states, strict=True):
            self.new.setdefault(place, state)

        for place, node in enumerate(self.nodes):
            if node.op == "input":
                self.at[place] = self._input(node.name)
            elif node.op == "constant":
                self.at[place] = ("constant", place)
                self.program.constants[self.at[place]] = node.value
        first = set() if operand is None else reached(self.nodes, [operand])
        for place, node in enumerate(self.nodes):
            if node.op not in LEAVES and place in first:
                self._emit(place, self.program.early)
        if operand is not None:
            self.program.operand = self.at[operand]
        inlined = self._inlined(first)
        for place, node in enumerate(self.nodes):
            if node.op not in LEAVES and place not in first and place not in inlined:
                self._emit(place, self.program.late)
        self._finish(results)
        for calls in (self.program.early, self.program.late):
            calls[:] = _side_by_side(calls)

    def _input(self, name: str) -> Register:
        for k, gate in enumerate(self.rule.gates):
            if name == self.rule.h_input(gate):
                return "gate", k
            if name == f"x_{gate}" and gate in self.rule.apart:
                return "x", k
        return "input", name

    def _per_row(self) -> set[int]:
        """The values that have a shape [B, H], and are not the same for all rows."""
        found: set[int] = set()
        for place, node in enumerate(self.nodes):
            if (node.op == "input" and node.name not in self.rule.extra) or any(arg in found for arg in node.args):
                found.add(place)
        return found

    def _inlined(self, done: set[int]) -> set[int]:
        """Products and differences that become part of the call that reads them."""
        inlined: set[int] = set()
        for place, node in enumerate(self.nodes):
            if node.op not in ("add", "sub") or place in done:
                continue
            for one, other in ((1, 0), (0, 1))[: 2 if node.op == "add" else 1]:
                product, base = node.args[one], node.args[other]
                if not self._only_here(product, "mul", done) or self.nodes[base].op == "constant":
                    continue
                a, b = self.nodes[product].args
                self.fused[place] = ("addcmul" if node.op == "add" else "minus_product", (base, a, b))
                inlined.add(product)
                for weight, difference in ((a, b), (b, a)):
                    towards = self.nodes[difference].args
                    if node.op == "add" and self._only_here(difference, "sub", done) and towards[1] == base:
                        self.fused[place] = ("lerp", (base, towards[0], weight))
                        inlined.add(difference)
                        break
                break
        return inlined

    def _only_here(self, place: int, op: str, done: set[int]) -> bool:
        node = self.nodes[place]
        alone = self.left[place] == 1 and place not in done and place not in self.saved and place not in self.new
        return alone and node.op == op and all(self.nodes[arg].op != "constant" for arg in node.args)

    def _emit(self, place: int, calls: list[Call]) -> None:
        node = self.nodes[place]
        op, args = self.fused.get(place, (node.op, node.args))
        registers = tuple(self.at[arg] for arg in args)
        for arg in (*args, *args[: op == "lerp"]):  # which reads its first operand twice
            self.left[arg] -= 1
        dead = [self.at[arg] for arg in dict.fromkeys(args) if self.left[arg] == 0 and self._passes(arg)]
        if place not in self.rows:
            self.at[place], calls = ("once", place), self.program.once
        elif node.op in LOGICAL:
            self.at[place] = ("truth", self.program.truths)
            self.program.truths += 1
        else:
            self.at[place] = self._out(place, dead)
        self.free += [register for register in dead if register != self.at[place]]
        calls.append(Call(op, registers, self.at[place]))

    def _passes(self, place: int) -> bool:
        """Whether a value's register may hold another one once nothing reads it: results are read in the end."""
        return self.at[place][0] in ("gate", "scratch")

    def _out(self, place: int, dead: list[Register]) -> Register:
        if place in self.new:
            return "new", self.new[place]
        if place in self.saved:
            gates = [register for register in dead if register[0] == "gate"]
            if gates and self.program.in_gates:
                return gates[0]
            self.program.own += 1
            return "own", self.program.own - 1
        scratch = [r for r in (*dead, *self.free) if r[0] == "scratch" or not self.program.in_gates]
        # A gate's place is left to the value that is saved there in the end, if the operand is on its way to that.
        scratch = [*(r for r in dead if r[0] == "gate"), *scratch]
        if scratch:
            if scratch[0] in self.free:
                self.free.remove(scratch[0])
            return scratch[0]
        self.program.scratch += 1
        return "scratch", self.program.scratch - 1

    def _finish(self, results: tuple[tuple[str, int], ...]) -> None:
        """Copies of what is a result twice, or is one without being computed, and where the saved values are."""
        late = self.program.late
        for (_, place), state in zip(results, self.rule.states, strict=True):
            if self.at[place] != ("new", state):
                late.append(Call("copy", (self.at[place],), ("new", state)))
        for place, name in self.saved.items():
            register = self.at[place]
            if register[0] == "new" or (register[0] == "gate" and not self.program.in_gates):
                register = ("own", self.program.own)
                self.program.own += 1
                late.append(Call("copy", (self.at[place],), register))
            self.program.saved[name] = register


def _side_by_side(calls: list[Call]) -> list[Call]:
    """The same function of gates that lie side by side, in place and as the first that becomes of them, is one call."""
    first: dict[int, Call] = {}
    seen: set[Register] = set()
    for call in calls:
        if call.out[0] == "gate" and call.args == (call.out,) and call.out not in seen:
            first[call.out[1]] = call
        seen |= {call.out, *call.args}
    merged: list[Call] = []
    for k, call in sorted(first.items()):
        before = merged[-1] if merged else None
        if before is not None and before.op == call.op and before.out[2] == k:
            span = ("gates", before.out[1], k + 1)
            merged[-1] = Call(call.op, (span,), span)
        else:
            span = ("gates", k, k + 1)
            merged.append(Call(call.op, (span,), span))
    return merged + [call for call in calls if call not in first.values()]
