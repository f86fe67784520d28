"""Rules that are generated of defined cells: their source, run on float64 tensors against the graph and autograd."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastcells.defined.definition import derive
from fastcells.defined.evaluate import evaluate
from fastcells.defined.spec import spec_of as make_spec
from fastcells.kernels.triton import cell_file
from fastcells.kernels.triton.activations import sigmoid
from fastcells.kernels.triton.generate import literal, source
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import rule_of
from fastcells.spec import CellSpec, RecurrentWeights
from fastcells.spec.recurrent import DENSE
from tests.support.accuracy import error
from tests.support.defined_cases import LAYERS
from tests.support.rule_twins import twin

EACH = pytest.mark.parametrize("name", LAYERS)
LIMIT = 1e-12  # of a few dozen terms in float64, some of them quotients: far below any wrong term
B, H = 40, 7

JANET = """
@triton.jit
def forward(x, product, state):
    f = x[0] + product[0]
    sigmoid_f = sigmoid(f)
    v3 = sigmoid(f - 1.0)
    tanh_g = tanh(x[1] + product[1])
    new_h = sigmoid_f * state[0] + (1.0 - v3) * tanh_g
    return (new_h,), (sigmoid_f, v3, tanh_g)


@triton.jit
def backward(d_state, saved, prev, new):
    sigmoid_f, v3, tanh_g = saved
    v1 = 1.0 - v3
    d_f = -(d_state[0] * tanh_g) * (v3 * v1) + d_state[0] * prev[0] * (sigmoid_f * (1.0 - sigmoid_f))
    d_g = d_state[0] * v1 * (1.0 - tanh_g * tanh_g)
    d_h = d_state[0] * sigmoid_f
    d = (d_f, d_g)
    return d, d, (d_h,)
"""


def spec_of(name: str) -> CellSpec:
    return LAYERS[name].kind.spec()


def largest_error(rule: UpdateRule) -> float:
    """Of all that a kernel computes of a rule, beside autograd through the cell's own step. W_hh is small and dense."""
    torch.manual_seed(0)
    spec, G = rule.spec, rule.spec.num_gates
    x, b = (torch.randn(B, G * H, dtype=torch.float64, requires_grad=True) for _ in range(2))  # b: for each row its own
    prev = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in spec.states]
    w = torch.randn(G * H, H, dtype=torch.float64) / 3
    expected = spec.step(x, tuple(prev), RecurrentWeights(w, b))
    d_new = [torch.randn_like(n) for n in expected]
    wanted = torch.autograd.grad(expected, [x, b, *prev], d_new, materialize_grads=True)
    with torch.no_grad():
        x_gates, gates = x.chunk(G, 1), w.chunk(G)
        product = [prev[0] @ w_g.t() + b_g for w_g, b_g in zip(gates, b.chunk(G, 1), strict=True)]
        if rule.reset_hidden is not None:
            operand = twin(rule.reset_hidden)(x_gates, product[:-1], prev)
            product[-1] = operand @ gates[-1].t() + b.chunk(G, 1)[-1]
        new, saved = twin(rule.forward)(x_gates, product, prev)
        given, through = (d_new, saved, prev, new), G
        if rule.backward_last_gate is not None:
            given, through = (*given, twin(rule.backward_last_gate)(*given) @ gates[-1]), G - 1
        d_x, d_h, d_prev = twin(rule.backward)(*given)
        whole = d_prev[0] + sum(d @ w_g for d, w_g in zip(d_h[:through], gates[:through], strict=True))
    assert len(saved) == spec.num_saved and len(new) == spec.num_states
    found = [*new, torch.cat(d_x, 1), torch.cat(d_h, 1), whole, *d_prev[1:]]
    pairs = zip(found, [*expected, *wanted], strict=True)
    return max(error(a, e.detach()) / max(1.0, e.abs().max().item()) for a, e in pairs)


@EACH
def test_against_autograd(name: str) -> None:
    rule = rule_of(spec_of(name).key)
    assert largest_error(rule) < LIMIT
    assert (rule.reset_hidden is not None) == (rule.backward_last_gate is not None) == rule.spec.two_products


@EACH
def test_against_the_graph(name: str) -> None:
    """Each function's values are those of the graph's own interpreter."""
    spec = spec_of(name)
    made, rule = spec.rule, rule_of(spec.key)
    assert made is not None
    counts = *[spec.num_gates] * 2, *[spec.num_states] * 2
    x, product, state, d_state = ([torch.randn(B, H, dtype=torch.float64) for _ in range(n)] for n in counts)
    values = made.gate_inputs(0, x, product) | dict(zip(spec.states, state, strict=True))
    expected = evaluate(made.forward, {n: values[n] for n in made.forward.inputs})
    new, saved = twin(rule.forward)(x, product, state)
    assert all(map(torch.equal, (*new, *saved), expected.values()))
    values |= expected | {f"d_new_{s}": d for s, d in zip(spec.states, d_state, strict=True)}
    values["d_operand"] = torch.randn(B, H, dtype=torch.float64)
    d = evaluate(made.backward, {n: values[n] for n in made.backward.inputs})
    given = (d_state, saved, state, new)
    if made.operand is not None:
        assert torch.equal(twin(rule.reset_hidden)(x, product, state), evaluate(made.operand, values)["operand"])
        assert torch.equal(twin(rule.backward_last_gate)(*given), d[f"d_{made.h_input(spec.gates[-1])}"])
        given = (*given, values["d_operand"])
    d_x, d_h, d_prev = twin(rule.backward)(*given)
    names = [*map(made.x_input, spec.gates), *map(made.h_input, spec.gates), *spec.states]
    for each, found in zip(names, (*d_x, *d_h, *d_prev), strict=True):
        assert torch.equal(found, torch.as_tensor(d.get(f"d_{each}", 0.0), dtype=found.dtype).expand(B, H)), each


def faults(text: str) -> list[str]:
    """The text with one of its operators or operands another one, for each place."""
    others = {" + ": " - ", " - ": " + ", " * ": " + ", "[0]": "[1]", "[1]": "[0]", "tanh(": "sigmoid(", "1.0": "2.0"}
    body = text.index("@triton.jit")
    return [
        text[: m.start()] + others[m.group()] + text[m.end() :]
        for m in re.finditer("|".join(map(re.escape, others)), text)
        if m.start() > body and not text.endswith("zeros_like(d_state", 0, m.start())  # of whatever state
    ]


@pytest.mark.parametrize("name", ["CoupledGateLSTM", "TwinLSTM"])
def test_a_fault_in_the_source_is_seen(name: str) -> None:
    """Each of them: a test of rules that are all alike would not do."""
    spec = spec_of(name)
    assert spec.rule is not None
    changed = faults(source(name, spec.rule))
    assert len(changed) > 40
    for text in changed:
        module = cell_file.load(f"{name}_fault", text)
        rule = replace(rule_of(spec.key), forward=module.forward, backward=module.backward)
        try:
            seen = largest_error(rule) > 1e-3
        except IndexError:  # of a state that there is not
            seen = True
        assert seen, text


def test_reads_as_a_person_would_write_it() -> None:
    rule = spec_of("JANET").rule
    assert rule is not None
    assert source("JANET", rule).endswith(JANET)


@EACH
def test_source_is_plain(name: str) -> None:
    rule = spec_of(name).rule
    assert rule is not None
    text = source(name, rule)
    assert text.isascii() and max(map(len, text.splitlines())) <= 120
    ast.parse(text)
    assert text == source(name, rule)


def test_names_that_mean_something_else_to_triton() -> None:
    def step(x: Tensor, float: Tensor, σ: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
        tl = sigmoid_of(x * 0.1)
        zero = torch.tanh(float)
        d = tl * zero + σ
        return d * zero, saved * tl + d

    sigmoid_of = torch.sigmoid
    text = source("Odd", derive("Odd", ("x", "float"), ("σ", "saved"), (), step))
    module = cell_file.load("Odd", text)
    x = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    (new, other), _ = twin(module.forward)(x, x, x)
    t, z = torch.sigmoid(2 * x[0] * 0.1), torch.tanh(2 * x[1])
    torch.testing.assert_close((new, other), ((t * z + x[0]) * z, x[1] * t + t * z + x[0]))
    assert text.isascii() and module.sigmoid is sigmoid


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (-0.5, "-0.5"),
        (1e60, 'float("inf")'),
        (-float("inf"), '-float("inf")'),
        (1e-60, "0.0"),
        (0.1, "0.1"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert literal(value)[0] == text


def test_two_cells_of_one_name() -> None:
    """Another definition is another rule; the same one again is the same."""

    def define(factor: float) -> CellSpec:
        rule = derive("Twice", ("a",), ("h",), (), lambda a, h: torch.tanh(a) * factor + h)
        return make_spec("Twice", rule, DENSE)

    factors = (0.5, 0.25, 0.5)
    specs = [define(factor) for factor in factors]
    assert specs[0] is specs[2] and specs[0].key != specs[1].key
    assert {s.name for s in specs} == {"Twice"} and specs[0].key.startswith("Twice-")
    for spec, factor in zip(specs, factors, strict=True):
        (new,), _ = twin(rule_of(spec.key).forward)([torch.ones(2)], [torch.zeros(2)], [torch.zeros(2)])
        torch.testing.assert_close(new, torch.tanh(torch.ones(2)) * factor)
