"""What cannot be a cell is refused with a message that says what, and where it stands."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastcells
from fastcells import DefinitionError
from tests.defined.cells import HeadsLSTM, TwinGRU, TwinLSTM
from tests.support.devices import OF_A_CPU

Step = Callable[..., Any]


def define(step: Step, **more: Any) -> Any:
    return fastcells.define("Mine", **({"gates": ("a", "b"), "states": ("h",), "step": step} | more))


def in_a_branch(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    if (a > 0).all():
        return b
    return h


def by_value(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    if a > b:
        return b
    return h


def in_a_helper(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    c = torch.tanh(a)
    return helper(c, b) + h


def helper(c: Tensor, b: Tensor) -> Tensor:
    return c.mean() + b


OUTSIDE = torch.ones(3)
OPERATORS: dict[str, tuple[Step, str]] = {
    "matmul": (lambda a, b, h: a @ b + h, "operator.matmul is not an operator of a cell"),
    "sum": (lambda a, b, h: a.sum(-1) + b, "Tensor.sum is not an operator"),
    "softmax": (lambda a, b, h: torch.softmax(a, -1) + b, "torch.softmax is not an operator"),
    "dropout": (lambda a, b, h: F.dropout(a) + b, "torch.nn.functional.dropout is not an operator"),
    "layer_norm": (lambda a, b, h: F.layer_norm(a, (3,)) + b, "torch.nn.functional.layer_norm is not an operator"),
    "in place": (lambda a, b, h: a.add_(b), "Tensor.add_ is not an operator"),
    "index": (lambda a, b, h: a[0] + b, "operator.getitem is not an operator"),
    "shape": (lambda a, b, h: a * b.shape[0], "Tensor.shape is not an operator"),
    "dtype": (lambda a, b, h: a.to(torch.float64) + b, "Tensor.to is not an operator"),
    "math": (lambda a, b, h: math.exp(a) + b, "math.exp is not an operator"),
    "float": (lambda a, b, h: a * float(b), "float() or a function of the math module needs a number"),
    "helper": (in_a_helper, "Tensor.mean is not an operator"),
    "walk": (lambda a, b, h: sum(x for x in a) + b, "elements cannot be walked through"),
    "branch": (in_a_branch, "Tensor.all is not an operator"),
    "control flow": (by_value, "control flow cannot depend on a tensor's values"),
    "builtin max": (lambda a, b, h: max(a, b), "control flow cannot depend on a tensor's values"),
    "tensor": (lambda a, b, h: a * b + OUTSIDE, "a tensor of shape [3] from outside"),
    "argument": (lambda a, b, h: torch.add(a, b, alpha=2), "torch.add: got an unexpected keyword argument 'alpha'"),
    "power": (lambda a, b, h: a**b, "an exponent must be an integer from 1 to 8, its negative, or 0.5"),
    "large power": (lambda a, b, h: a**9 + b, "not 9"),
    "condition": (lambda a, b, h: torch.where(a, b, h), "its condition must be a comparison"),
    "nothing": (lambda a, b, h: None, "must return tensors, got NoneType"),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operators(case: str) -> None:
    step, message = OPERATORS[case]
    with pytest.raises(DefinitionError, match=re.escape(message)) as caught:
        define(step)
    assert re.match(r"test_errors\.py, line \d+, `", str(caught.value)), caught.value


def test_the_line_is_that_of_the_operator() -> None:
    for step, inner, text in ((by_value, by_value, "if a > b:"), (in_a_helper, helper, "return c.mean() + b")):
        lines, first = inspect.getsourcelines(inner)
        number = first + next(i for i, line in enumerate(lines) if text in line)
        with pytest.raises(DefinitionError, match=re.escape(f"line {number}, `{text}`")):
            define(step)


def both(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * b


DEFINITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "state not returned": (
        {"states": ("h", "c"), "step": lambda a, b, c: a * b + c},
        "the function returns 1 of 2 values, h, c: c not returned",
    ),
    "too many": ({"step": lambda a, b: (a * b, a)}, "the function returns 2 of 1 values, h"),
    "twice a gate": ({"gates": ("a", "b", "a")}, "'a' is twice a name, of a gate and of a gate"),
    "twice": ({"states": ("h", "b")}, "'b' is twice a name, of a gate and of a state"),
    "twice extra": ({"extra": ("h",)}, "'h' is twice a name, of a state and of a extra parameter"),
    "unused gate": ({"gates": ("a", "b", "o")}, "the gate o is not used"),
    "unused half": (
        {"step": lambda x_a, b: x_a * b},
        "the gate h_a is not used",
    ),
    "unused in effect": ({"step": lambda a, b, h: torch.where(a > 1, b, b) + h}, "the gate a is not used"),
    "unused parameter": ({"extra": ("p",)}, "the extra parameter p is not used"),
    "unused state": ({"states": ("h", "c"), "step": lambda a, b: (a * b, a)}, "the state c is not used"),
    "unknown": ({"step": lambda a, b, q: a * b + q}, "a parameter 'q', which is no gate, state or extra parameter"),
    "sum and part": ({"step": lambda a, x_a, b: a * x_a + b}, "take the sum or the parts, not both"),
    "reserved": ({"extra": ("d_h",)}, "no name may begin with"),
    "no name": ({"gates": ("a", "b c")}, "a gate's name must be a Python name, got 'b c'"),
    "no function": ({"step": torch.tanh}, "a rule must be a Python function, which can be traced, got <built-in"),
    "no gate": ({"gates": ()}, "at least one gate and one state"),
    "shapeless state": (
        {"states": ("h", "c"), "extra": ("p",), "step": lambda a, b, c, p: (a * b + c, p)},
        "the new state c has no shape [B, H]",
    ),
    "operand": ({"operand": {"a": lambda b, h: b * h}}, "operand is what the last gate's rows of W_hh multiply"),
    "operand of itself": ({"operand": {"b": lambda b, h: b * h}}, "a parameter 'b', which is no gate"),
    "recurrent": ({"recurrent": "sparse"}, "recurrent must be one of 'dense', 'diagonal', 'heads', got 'sparse'"),
    "initial": ({"initial": {"q": 1.0}}, "initial names ['q']"),
}


@pytest.mark.parametrize("case", DEFINITIONS)
def test_definitions(case: str) -> None:
    more, message = DEFINITIONS[case]
    with pytest.raises(DefinitionError, match=re.escape(message)):
        define(**({"step": both} | more))


@pytest.mark.parametrize(("name", "message"), [("gru", "a built-in cell"), ("my cell", "must be a Python name")])
def test_names(name: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        fastcells.define(name, gates=("a", "b"), step=both)


X = torch.randn(4, 3, 5)
CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "heads": (lambda: HeadsLSTM(5, 8, num_heads=3), ValueError, "hidden_size must be a multiple of 3 heads, got 8"),
    "no heads": (lambda: TwinGRU(5, 8, num_heads=2), ValueError, "TwinGRU has dense recurrent weights and no heads"),
    "no number": (lambda: HeadsLSTM(5, 8, num_heads=0), ValueError, "num_heads must be a positive integer, got 0"),
    "state": (lambda: TwinGRU(5, 8)(X, torch.zeros(1, 3, 7)), RuntimeError, "Expected h size (1, 3, 8), got [1, 3, 7]"),
    "second state": (
        lambda: TwinLSTM(5, 8)(X, (torch.zeros(1, 3, 8), torch.zeros(1, 2, 8))),
        RuntimeError,
        "Expected c size (1, 3, 8), got [1, 2, 8]",
    ),
    "one of two": (
        lambda: TwinLSTM(5, 8)(X, X),
        TypeError,
        "hx must be a tuple (h, c), got a tensor of shape [4, 3, 5]",
    ),
    "three of two": (lambda: TwinLSTM(5, 8)(X, (X, X, X)), RuntimeError, "hx must be 2 states, h, c, got 3"),
    "two of one": (lambda: TwinGRU(5, 8)(X, (X, X)), TypeError, "hx must be a tensor, got tuple"),
    "features": (lambda: TwinGRU(4, 8)(X), RuntimeError, "Expected 4, got 5"),
    "cell state": (
        lambda: TwinLSTM.Cell(5, 8)(X[0], (torch.zeros(3, 8), torch.zeros(3, 7))),
        RuntimeError,
        "hidden must be [B, H] = [3, 8], got [3, 7]",
    ),
    "onnx": (lambda: fastcells.to_onnx(TwinGRU(5, 8)), ValueError, "ONNX has no such recurrence: TwinGRU(5, 8)"),
    "script": (lambda: torch.jit.script(TwinGRU(5, 8)), RuntimeError, "cannot compile fastcells.TwinGRU"),
}


@OF_A_CPU
@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str) -> None:
    call, error, message = CALLS[case]
    with pytest.raises(error, match=re.escape(message)):
        call()
