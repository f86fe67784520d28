"""What is overwritten between forward and backward: never a wrong gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from fastcells import functional
from tests.support.idiom_cases import ALL, CORE, IMPLS, TRITON, Given, has
from tests.support.idiom_outcomes import Raised, assert_same, call, grads, outcome, weigh

NAMES = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_hh")


def _overwritten(name: str, really: bool) -> Callable[..., Any]:
    """`name`, of the inputs or parameters, changes in place before backward."""

    def idiom(module: nn.Module, given: Given) -> Any:
        x = given.x
        x = x._replace(data=x.data.detach().clone()) if isinstance(x, PackedSequence) else x.detach().clone()
        hx = tree_map(lambda h: h.detach().clone(), given.hx)
        states = hx if isinstance(hx, tuple) else (hx,)
        parameters = dict(module.named_parameters())
        outs = call(module, given, x, hx)
        targets = {
            "x": getattr(x, "data", x) if isinstance(x, PackedSequence) else x,
            "h0": states[0],
            "c0": states[-1],
        }
        with torch.no_grad():
            if really:
                target = targets.get(name)
                (parameters.get(name, parameters.get(f"{name}_l0")) if target is None else target).zero_()
        weigh(outs).backward()
        return grads(module, given)

    return idiom


SUBJECTS = [(s, n) for s in ALL for n in NAMES if s in CORE or n in ("x", "h0")]
SUBJECTS += [(s, n) for s in TRITON for n in ("h0", "weight_hh")]


@pytest.mark.parametrize(("subject", "name"), [pytest.param(s, n, id=f"{s}-{n}") for s, n in SUBJECTS if has(s, n)])
def test_overwritten_before_backward(subject: Any, name: str) -> None:
    """Never a wrong gradient: an error as torch.nn's, or what it would have been."""
    theirs = outcome(_overwritten(name, True), subject, False)
    right = outcome(_overwritten(name, False), subject, False)
    ours = outcome(_overwritten(name, True), subject, True)
    if isinstance(ours, Raised):  # of the bias too: torch.nn's backward can do without it, ours may keep it
        assert isinstance(ours.error, RuntimeError), repr(ours)
    else:
        assert_same(ours, right)
        assert not isinstance(theirs, Raised) or name != "weight_hh", f"torch.nn raises {theirs!r}"


@pytest.mark.parametrize("what", ["lengths", "resets", "ids", "h0"])
@pytest.mark.parametrize("impl", ["auto", "torch", "cpu"])
@pytest.mark.parametrize("form", ["rnn", "gru", "gru-before", "lstm"])
def test_overwritten_options(form: str, impl: str, what: str) -> None:
    T, B, I, H = 6, 3, 5, 4  # noqa: E741
    form, _, before = form.partition("-")
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[form]
    states = 2 if form == "lstm" else 1
    weights = [torch.randn(s).requires_grad_() for s in ((gates * H, I), (gates * H, H), (gates * H,), (gates * H,))]
    options: dict[str, Any] = {"reset_after": False} if before else {}

    def run(overwrite: bool) -> Any:
        torch.manual_seed(3)
        values = {"ids": torch.randint(I, (T, B)), "h0": torch.randn(B, H)}
        values["lengths"], values["resets"] = torch.tensor([6, 2, 4]), torch.rand(T, B) < 0.4
        state = [values["h0"]] + [torch.randn(B, H)] * (states - 1)
        asked = {k: values[k] for k in ("lengths", "resets") if k == what}
        outs = getattr(functional, form)(values["ids"], *state, *weights, **options, **asked, impl=impl)
        if overwrite:
            values[what].zero_()
        try:
            return torch.autograd.grad(weigh(outs), weights)
        except RuntimeError as error:
            return Raised(error)

    right, got = run(False), run(True)
    if not isinstance(got, Raised):
        assert_same(got, right)


def test_overwritten_weight_raises() -> None:
    """Negative control: the check above accepts an error, so one subject must show that torch.nn has it."""
    assert isinstance(outcome(_overwritten("weight_hh", True), IMPLS[0], False), Raised)
