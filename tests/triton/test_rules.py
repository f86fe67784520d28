"""Rule twins: the kernels' own source, run on float64 torch tensors. Forward against torch's cells, backward against
autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcells import reference
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import RULES
from fastcells.spec import SPECS
from tests.support.accuracy import error
from tests.support.rule_twins import twin

B, I, H = 5, 3, 24  # noqa: E741
# One step of a few dozen terms in float64: far above its rounding, far below any wrong term.
LIMIT = 1e-14

CELLS: dict[str, tuple[Callable[..., Any], dict[str, object]]] = {
    "rnn_tanh": (nn.RNNCell, {}),
    "rnn_relu": (nn.RNNCell, {"nonlinearity": "relu"}),
    "gru": (nn.GRUCell, {}),
    "gru_reset_before": (nn.GRUCell, {}),
    "lstm": (nn.LSTMCell, {}),
}
EACH = pytest.mark.parametrize("name", CELLS)


def step(rule: UpdateRule, x: list[Tensor], w: list[Tensor], b: list[Tensor], state: list[Tensor]) -> tuple[Any, ...]:
    """What a kernel does around the rule's forward."""
    h = [state[0] @ w_g.t() + b_g for w_g, b_g in zip(w, b, strict=True)]
    if rule.reset_hidden is not None:
        h[-1] = twin(rule.reset_hidden)(x, h, state) @ w[-1].t() + b[-1]
    new, saved = twin(rule.forward)(x, h, state)
    return h, new, saved


def case(name: str) -> tuple[UpdateRule, nn.RNNCellBase, Tensor, list[Tensor]]:
    rule, (cls, options) = RULES[name], CELLS[name]
    state = [torch.randn(B, H, dtype=torch.float64) for _ in rule.spec.states]
    return rule, cls(I, H, **options).double(), torch.randn(B, I, dtype=torch.float64), state


@EACH
def test_forward_against_torchs_cell(name: str) -> None:
    rule, cell, x, state = case(name)
    x_proj = list((x @ cell.weight_ih.t() + cell.bias_ih).chunk(rule.spec.num_gates, 1))
    w, b = list(cell.weight_hh.chunk(rule.spec.num_gates)), list(cell.bias_hh.chunk(rule.spec.num_gates))
    _, new, saved = step(rule, x_proj, w, b, state)
    if name == "gru_reset_before":
        weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        expected = (reference.gru_cell(x, state[0], *weights, reset_after=False),)
    elif name == "lstm":
        expected = cell(x, tuple(state))
    else:
        expected = (cell(x, state[0]),)
    assert len(new) == rule.spec.num_states and len(saved) == rule.spec.num_saved
    assert all(error(a, e) < LIMIT for a, e in zip(new, expected, strict=True))


@EACH
def test_backward_against_autograd(name: str) -> None:
    rule, cell, x, state = case(name)
    x_proj = [
        t.detach().requires_grad_() for t in (x @ cell.weight_ih.t() + cell.bias_ih).chunk(rule.spec.num_gates, 1)
    ]
    w = [t.detach() for t in cell.weight_hh.chunk(rule.spec.num_gates)]
    b = [t.detach().requires_grad_() for t in cell.bias_hh.chunk(rule.spec.num_gates)]
    prev = [s.requires_grad_() for s in state]
    _, new, saved = step(rule, x_proj, w, b, prev)
    d_new = [torch.randn_like(n) for n in new]
    expected = torch.autograd.grad(new, [*x_proj, *b, *prev], d_new)
    with torch.no_grad():
        arguments = ([*d_new], [s.detach() for s in saved], [p.detach() for p in prev], [n.detach() for n in new])
        if rule.backward_last_gate is None:
            d_x, d_h, d_prev = twin(rule.backward)(*arguments)
            through = sum(d @ w_g for d, w_g in zip(d_h, w, strict=True))
        else:
            d_reset_hidden = twin(rule.backward_last_gate)(*arguments) @ w[-1]
            d_x, d_h, d_prev = twin(rule.backward)(*arguments, d_reset_hidden)
            through = sum(d @ w_g for d, w_g in zip(d_h[:-1], w[:-1], strict=True))
        d_prev = (d_prev[0] + through, *d_prev[1:])
        actual = [*d_x, *(d.sum(0) for d in d_h), *d_prev]
    if rule.spec.same_gradient:
        assert all(a is b or torch.equal(a, b) for a, b in zip(d_x, d_h, strict=True))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert error(a, e) < LIMIT * max(1.0, e.abs().max().item()), f"gradient {i}"


def test_each_rule_is_of_the_cell_that_it_is_named_after() -> None:
    """And all of them are tested here."""
    assert RULES.keys() == CELLS.keys()
    assert all(rule.spec is SPECS[name] for name, rule in RULES.items())


@EACH
def test_saved_per_token(name: str) -> None:
    """At most H for the RNN, 5H for the GRU, 6H for the LSTM, the states included."""
    rule = RULES[name]
    assert rule.spec.num_saved + rule.spec.num_states <= {"rnn": 1, "gru": 5, "lst": 6}[name[:3]]
