"""The arguments of the C recurrences, as kernels/cpu/arguments.h lists them: the tensors, their shapes, their order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastcells.backends.cpu import buffers, checks
from fastcells.spec import SPECS

try:
    from fastcells.kernels import _cpu as _cpu  # type: ignore[attr-defined]
except ImportError:  # built only where there was a C compiler
    _cpu = None

c_module = _cpu

# Of each cell the last gates that `d_gates` has.
_APART: dict[str, int] = {} if c_module is None else {name: apart for name, *_, apart in c_module.cells()}
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor | None]


class Argument(NamedTuple):
    """A row of arguments.h, which says what the words mean."""

    name: str
    kind: str  # number, read, write or keep
    type: str
    shape: str
    when: str


TABLES: dict[str, list[Argument]] = (
    {}
    if c_module is None
    else {kernel: [Argument(*row) for row in rows] for kernel, rows in c_module.arguments().items()}
)
Check = Callable[[str, Tensor | None, tuple[int, ...]], Tensor]
CHECKS: dict[str, Check] = {
    "float": checks.float32,
    "uint8_t": checks.flags,
    "int64_t": checks.lengths,
    "int32_t": checks.program,
}
ELEMENTS: dict[torch.dtype, Check] = {torch.float32: checks.float32, torch.bfloat16: checks.bfloat16}


def _for_the_caller(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_empty(*shape)


def _kept(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffers.empty(*shape, dtype=like.dtype)


ALLOCATE = {"write": _for_the_caller, "keep": _kept}


class Recurrence:
    """What `forward` or `backward` reads and writes for one cell and dtype, in the order of C.

    facts: which conditions of arguments.h hold.
    """

    def __init__(self, kernel: str, facts: frozenset[str], dtype: torch.dtype = torch.float32) -> None:
        check = {**CHECKS, "element": ELEMENTS[dtype]}
        self.dtype, self.function = dtype, kernel if dtype == torch.float32 else f"{kernel}_bf16"
        rows = [(a, all(each in facts or each == "optional" for each in a.when.split())) for a in TABLES[kernel]]
        self.reads = [
            (a.name, check[a.type] if present else None, a.shape, "optional" in a.when)
            for a, present in rows
            if a.kind == "read"
        ]
        self.writes = [
            (a.name, ALLOCATE[a.kind] if present else None, a.shape) for a, present in rows if a.kind in ALLOCATE
        ]

    def read(self, given: Tensors, shapes: Shapes) -> list[Tensor | None]:
        """The tensors as C reads them; RuntimeError. None where the cell has no such tensor, whatever is given."""
        return [
            None if check is None or (optional and given[name] is None) else check(name, given[name], shapes[shape])
            for name, check, shape, optional in self.reads
        ]

    def allocate(self, like: Tensor, shapes: Shapes) -> list[tuple[str, Tensor | None, tuple[int, ...]]]:
        """What C writes: name, tensor or None, shape."""
        return [
            (name, None if new is None else new(like, shapes[shape]), shapes[shape]) for name, new, shape in self.writes
        ]


@cache
def recurrence(kernel: str, cell: str, save: bool, apart: bool, dtype: torch.dtype = torch.float32) -> Recurrence:
    """One for all calls of a kind.

    save: whether the forward keeps what the backward needs. apart: whether states are not the outputs.
    """
    spec = SPECS[cell]
    facts = {
        "two_states": len(spec.states) == 2,
        "has_saved": bool(spec.saved),
        "apart_gates": _APART[cell] > 0,
        "save": save,
        "apart": apart,
    }
    return Recurrence(kernel, frozenset(name for name, holds in facts.items() if holds), dtype)


def shapes(cell: str, T: int, B: int, H: int) -> Shapes:
    """Those of arguments.h, by their names there."""
    spec = SPECS[cell]
    gates, saved = len(spec.gates) * H, len(spec.saved)
    return {
        "B": (B,),
        "T B": (T, B),
        "B H": (B, H),
        "T B H": (T, B, H),
        "T B G*H": (T, B, gates),
        "T B A*H": (T, B, _APART[cell] * H),
        "T B S H": (T, B, saved, H),
        "G*H": (gates,),
        "G*H H": (gates, H),
    }
