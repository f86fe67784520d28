"""Programs of defined cells: what each operation computes, and that C refuses what is no program."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.backends.base import Inputs, StepInput, Steps
from fastcells.backends.cpu import native
from fastcells.backends.cpu.assembler import OPERATIONS, assemble
from fastcells.backends.cpu.defined import DefinedCell
from fastcells.defined.builder import Builder
from fastcells.defined.evaluate import evaluate
from fastcells.defined.graph import LEAVES, OPS, Graph
from fastcells.defined.spec import spec_of
from fastcells.spec import RecurrentWeights
from fastcells.spec.recurrent import DIAGONAL
from tests.defined.rules import RULES, rule

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

HEAD = 3  # words ahead of the constants


def run_words(words: list[int], a: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Tensor:
    """A program of places x = a, state = b, extra = c and new, with one gate, one state and no product."""
    H = a.numel()
    b, c = (torch.zeros(H) if t is None else t for t in (second, third))
    out, last, program = torch.full((H,), torch.nan), torch.empty(H), torch.tensor(words, dtype=torch.int32)
    counts = [1, 1, 0, 0, 1, 0, 1, 0, len(words), 0]
    addresses = [program.data_ptr(), 0, a.data_ptr(), b.data_ptr(), 0, 0, c.data_ptr(), 0, 0, out.data_ptr()]
    native.call("defined_forward", 1, 1, 1, H, 0, *counts, *addresses, 0, 0, 0, last.data_ptr())
    return out


# x 0, product 0, state 0, extra 0, new 0, operand 0: numbered from 0; then registers, then constants.
X, PRODUCT, STATE, EXTRA, NEW, OPERAND, PLACES = range(7)


def words_of(graph: Graph) -> list[int]:
    return assemble(graph, {"x": X, "state": STATE, "extra": EXTRA, "new": NEW}, PLACES).tolist()


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "exp": (torch.exp, torch.linspace(-103, 88.7, 40001)),
    "log": (torch.log, torch.cat([torch.logspace(-44, 38, 20001), torch.linspace(0.5, 2, 20001)])),
    "log1p": (torch.log1p, torch.cat([torch.logspace(-37, 38, 20001), -torch.logspace(-37, -1e-4, 20001)])),
    "softplus": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), torch.linspace(-80, 80, 40001)),
    "sqrt": (torch.sqrt, torch.logspace(-44, 38, 20001)),
    "sigmoid": (torch.sigmoid, torch.linspace(-87, 87, 40001)),
    "tanh": (torch.tanh, torch.linspace(-10, 10, 40001)),
}
ODD = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, -1.0, 89.0])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, instructions: str) -> None:
    """At most 2 units in the last place off, where torch's are 1.5; NaN and infinity as torch has them."""
    function, x = FUNCTIONS[name]
    words = [0, 0, 1, OPERATIONS[name], NEW, X, X, X]
    exact = function(x.double())
    unit = (torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()).double()
    off = (run_words(words, x).double() - exact).abs() / unit
    limit = 4 if name in ("sigmoid", "tanh") else 2  # test_cpu_accuracy.py compares these two with torch's
    assert off.max() <= limit and off.mean() < 0.6
    odd, expected = run_words(words, ODD), (F.softplus if name == "softplus" else function)(ODD)
    torch.testing.assert_close(odd, expected, rtol=1e-6, atol=1e-44, equal_nan=True)


@pytest.mark.parametrize("op", sorted(OPS - LEAVES))
def test_operations(op: str, instructions: str) -> None:
    """Each as torch has it, on what is equal, larger, smaller and NaN."""
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 2.0, torch.nan])
    x, state, extra = (t.flatten() for t in torch.meshgrid(values, values, values, indexing="ij"))
    b = Builder()
    given = [b.input(name) for name in ("x", "state", "extra")]
    operands = {"where": [b.op("lt", given[0], given[1]), *given[1:]]}
    logical = [b.op("lt", given[0], given[1]), b.op("ge", given[1], given[2])]
    operands |= {"and": logical, "or": logical, "not": logical[:1]}
    count = dict(native._cpu.operations())[op]
    result = b.op(op, *operands.get(op, given[:count]))
    result = b.op("where", result, b.constant(1), b.constant(0)) if b.is_logical(result) else result
    graph = b.graph([("new", result)])
    expected = evaluate(graph, {"x": x, "state": state, "extra": extra})["new"]
    torch.testing.assert_close(run_words(words_of(graph), x, state, extra), expected, equal_nan=True)


def test_joined_operations() -> None:
    """What stands for several operations of a graph does not change what it computes."""
    b = Builder()
    x, s, e = (b.input(name) for name in ("x", "state", "extra"))
    one = b.constant(1)
    forms = {
        "sum": b.op("add", x, b.op("add", s, e)),
        "sigmoid_sum": b.op("sigmoid", b.op("add", b.op("add", x, s), e)),
        "tanh_sum": b.op("tanh", b.op("add", x, s)),
        "mul_add": b.op("add", e, b.op("mul", x, s)),
        "mul_sub": b.op("sub", b.op("mul", x, s), e),
        "sub_mul": b.op("sub", x, b.op("mul", s, e)),
        "mul_less": b.op("mul", x, b.op("mul", s, b.op("sub", one, s))),
        "mul_rest": b.op("mul", x, b.op("sub", one, b.op("mul", s, e))),
    }
    values = {name: torch.randn(50) for name in ("x", "state", "extra")}
    for name, place in forms.items():
        graph = b.graph([("new", place)])
        words = words_of(graph)
        constants, instructions = words[1], words[2]
        assert instructions == 1 and words[HEAD + constants] == OPERATIONS[name], name
        torch.testing.assert_close(run_words(words, *values.values()), evaluate(graph, values)["new"])
    assert set(OPERATIONS) == {*forms, *OPS - LEAVES, "copy"}


ADD = [1, 1, 2, *torch.tensor([1.5]).view(torch.int32).tolist(), 1, 6, X, 7, X, 1, NEW, 6, STATE, X]


def test_the_program_that_is_spoilt_below() -> None:
    assert torch.equal(run_words(ADD, torch.ones(5), torch.ones(5)), torch.full((5,), 3.5))


SPOILT: dict[str, tuple[dict[int, int], int]] = {
    "operation": ({4: 99}, 4),
    "negative operation": ({4: -1}, 4),
    "result past the registers": ({5: 7}, 5),
    "result past everything": ({5: 1000}, 5),
    "negative result": ({5: -1}, 5),
    "what is read is written": ({5: X}, 5),
    "operand past everything": ({6: 8}, 6),
    "negative operand": ({7: -2}, 7),
    "a place that there is not": ({6: PRODUCT}, 6),
    "a register before it is written": ({6: 6}, 6),
    "an output before it is written": ({8: NEW}, 8),
    "an unused operand past everything": ({8: 1 << 30}, 8),
    "an output that is not written": ({10: 6}, 14),
    "registers": ({0: 100000}, 0),
    "negative registers": ({0: -1}, 0),
    "constants": ({1: 257}, 1),
    "more constants than there are": ({1: 2}, 14),
    "instructions": ({2: 1 << 29}, 2),
    "more instructions than there are": ({2: 3}, 14),
    "fewer instructions": ({2: 1}, 14),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_no_program_is_refused(spoilt: str) -> None:
    changes, word = SPOILT[spoilt]
    with pytest.raises(ValueError, match=rf"word {word} of the program is not valid"):
        run_words([changes.get(i, w) for i, w in enumerate(ADD)], torch.ones(5))


def test_random_words_are_refused_or_run() -> None:
    """Programs with a few words changed neither crash nor write past their outputs (which a sanitizer would see)."""
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(2000):
        words = list(ADD)
        for position in torch.randint(len(words), (2,), generator=generator).tolist():
            words[position] = int(torch.randint(-2, 12, (1,), generator=generator))
        try:
            run_words(
                words[: 2 + int(torch.randint(14, (1,), generator=generator))] if refused % 9 == 0 else words,
                torch.ones(3),
            )
        except ValueError:
            refused += 1
    assert 500 < refused < 2000


@pytest.mark.parametrize("numbers", [{0: 0}, {0: 1000}, {1: 5}, {3: 0}, {3: 1 << 40}, {5: 300}, {6: 300}, {2: 1}])
def test_numbers_are_refused(numbers: dict[int, int]) -> None:
    counts = [1, 0, 0, 1, 0, 1, 0, len(ADD), 0]
    with pytest.raises(ValueError, match="program is not valid"):
        native.call("defined_forward", 1, 1, 1, 4, 0, 1, *(numbers.get(i, n) for i, n in enumerate(counts)), *[0] * 14)


def test_registers_are_used_again() -> None:
    """As many as live at once, and not one a value."""
    for name in RULES:
        cell = DefinedCell(spec_of(name, rule(name), DIAGONAL), rule(name))
        for words in (cell.forward_programs(True, True).first, cell.backward_programs.first):
            assert int(words[0]) <= max(4, int(words[2]) // 2), name


def test_sizes_of_nothing() -> None:
    cell = DefinedCell(spec_of("lstm", rule("lstm"), DIAGONAL), rule("lstm"))
    for T, B, H in ((0, 3, 4), (3, 0, 4)):
        state = (torch.randn(B, H), torch.randn(B, H))
        inputs = Inputs(StepInput(torch.zeros(T, B, 4 * H)), state, RecurrentWeights(torch.ones(4 * H)), Steps())
        trace = cell.forward(inputs, save=True)
        assert trace.hidden.shape == (T, B, H)
        assert all(map(torch.equal, trace.last, state)) and math.prod(trace.hidden.shape) == 0
