"""A rule's backward against autograd through its forward, in float64, and what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcells.defined.builder import Builder
from fastcells.defined.definition import derive
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import linear_backward
from fastcells.defined.rule import OPERAND
from fastcells.spec import SPECS
from tests.defined.rules import RULES, rule

EACH_RULE = pytest.mark.parametrize("name", RULES)


def random_inputs(names: set[str]) -> dict[str, Tensor]:
    return {name: torch.randn(40, 7, dtype=torch.float64, requires_grad=True) for name in sorted(names)}


@EACH_RULE
def test_backward_is_the_adjoint(name: str) -> None:
    torch.manual_seed(0)
    made = rule(name)
    inputs = random_inputs({*made.forward.inputs, *(made.operand.inputs if made.operand else ())})
    results = evaluate(made.forward, inputs)
    new = {f"new_{state}": results[f"new_{state}"] for state in made.states}
    ends = new | (evaluate(made.operand, inputs) if made.operand else {})
    d = {f"d_{end}": torch.randn_like(value) for end, value in ends.items()}
    expected = torch.autograd.grad(list(ends.values()), list(inputs.values()), list(d.values()), materialize_grads=True)

    known = {k: v for k, v in inputs.items() if k in made.states + made.extra}
    given = {k: v.detach() for k, v in (known | new | {s: results[s] for s in made.saved} | d).items()}
    got = evaluate(made.backward, {k: given[k] for k in made.backward.inputs})
    for each, wanted in zip(inputs, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(got[f"d_{each}"]) + torch.zeros_like(wanted), wanted)
    assert set(got) == {f"d_{each}" for each in inputs}


@pytest.mark.parametrize("name", SPECS)
def test_saves_no_more_than_the_rule_written_by_hand(name: str) -> None:
    assert len(rule(name).saved) <= SPECS[name].num_saved


def test_ties_are_torchs() -> None:
    """Where an operator has two derivatives, the one that torch takes."""
    names = ("a", "b", "h")
    for step in (
        lambda a, b, h: torch.minimum(a, b) * torch.maximum(a, h) + torch.relu(b) * h,
        lambda a, b, h: torch.clamp(a, -1, 1) * b + torch.abs(h) * torch.clamp(b, min=0),
    ):
        made = derive("ties", "ab", "h", "", step)
        values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
        given = dict(
            zip(names, (v.flatten().requires_grad_() for v in torch.meshgrid([values] * 3, indexing="ij")), strict=True)
        )
        out = step(*given.values())
        d = torch.randn_like(out)
        expected = torch.autograd.grad(out, list(given.values()), d)
        known = given | evaluate(made.forward, given) | {"d_new_h": d}
        got = evaluate(made.backward, {k: known[k].detach() for k in made.backward.inputs})
        for name, wanted in zip(names, expected, strict=True):
            torch.testing.assert_close(got[f"d_{name}"], wanted)


def test_sums_are_those_written_by_hand() -> None:
    """The LSTM's: c' gets its gradient once, and each gate is one product."""
    sums = linear_backward(rule("lstm")).sums
    shared = sums[0].name
    assert [source for source, _ in sums[0].terms] == ["d_new_c", "d_new_h"]
    assert {s.name: [source for source, _ in s.terms] for s in sums[1:]} == {
        **{name: [shared] for name in ("d_i", "d_f", "d_g", "d_c")},
        "d_o": ["d_new_h"],
    }


def test_second_product() -> None:
    made = rule("gru_reset_before")
    assert made.second == ("n",) and made.operand is not None
    assert made.operand.output_names == (OPERAND,)
    assert str(made.operand) == "inputs r, h\nsigmoid_r = sigmoid(r)\nv1 = sigmoid_r * h\nreturn operand=v1"


def test_reads_as_assignments() -> None:
    assert str(rule("gru").forward).splitlines() == [
        "inputs r, z, x_n, h_n, h",
        "r_1 = sigmoid(r)",
        "z_1 = sigmoid(z)",
        "v1 = r_1 * h_n",
        "v2 = x_n + v1",
        "n = tanh(v2)",
        "v3 = h - n",
        "v4 = z_1 * v3",
        "v5 = n + v4",
        "return new_h=v5, h_n=h_n, r_1=r_1, z_1=z_1, n=n",
    ]


def test_simplifies() -> None:
    b = Builder()
    x, y = b.input("x"), b.input("y")
    zero, one = b.constant(0), b.constant(1)
    assert b.op("mul", x, one) == x == b.op("add", zero, x) == b.op("div", x, one) == b.op("sub", x, zero)
    assert b.op("neg", b.op("neg", x)) == x
    assert b.op("add", x, y) == b.op("add", y, x) and b.op("sub", x, y) != b.op("sub", y, x)
    assert b.op("sub", x, b.op("neg", y)) == b.op("add", x, y)
    assert b.nodes[b.op("add", b.constant(2), b.op("exp", zero))].value == 3
    assert b.nodes[b.op("mul", x, zero)].op == "mul"  # x may be infinite
    b.op("tanh", y)
    assert str(b.graph([("z", b.op("mul", x, x))])) == "inputs x\nv1 = x * x\nreturn z=v1"
