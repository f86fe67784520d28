"""The loops in torch that are made of a rule, against autograd through the cell's plain steps, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcells import functional, one_direction
from fastcells.autograd import unroll
from fastcells.backends.base import LayerWeights, Steps
from fastcells.backends.torch import factors
from fastcells.backends.torch.backend import DERIVED
from fastcells.defined.spec import spec_of
from fastcells.spec import CellSpec, RecurrentWeights
from fastcells.spec.recurrent import DENSE, DIAGONAL, Heads, RecurrentProduct
from tests.defined.rules import RULES, rule

PRODUCTS = {"dense": DENSE, "diagonal": DIAGONAL, "heads": Heads(3), "one head": Heads(1)}
T, B, H = 5, 4, 6


def leaves(spec: CellSpec, bias: bool) -> list[Tensor]:
    """x, w_ih, b_ih, w_hh, b_hh, the states and extra parameters."""
    G = spec.num_gates
    sizes = [(T, B, 3), (G * H, 3), (G * H,), spec.recurrent.shape(G, H), (G * H,)]
    sizes += [(B, H)] * spec.num_states + [(H,)] * len(spec.extra)
    found = [(0.6 * torch.randn(size, dtype=torch.float64)).requires_grad_() for size in sizes]
    return found if bias else [t.detach() * 0 if i in (2, 4) else t for i, t in enumerate(found)]


@pytest.mark.parametrize("name", RULES)
def test_factors_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "CHUNK", 2 * B * H)  # three steps, of five
    for steps in ("reverse", "lengths"):
        check(name, DENSE, steps)


@pytest.mark.parametrize("steps", ["forward", "reverse", "lengths", "reverse lengths"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", RULES)
def test_loop_is_the_steps(name: str, product: str, steps: str) -> None:
    check(name, PRODUCTS[product], steps)


def check(name: str, product: RecurrentProduct, steps: str) -> None:
    torch.manual_seed(0)
    spec = spec_of(name, rule(name), product)
    lengths = torch.tensor([2, 0, 5, 3], dtype=torch.int32) if "lengths" in steps else None
    way = Steps("reverse" in steps, lengths)
    x, w_ih, b_ih, w_hh, b_hh, *rest = given = leaves(spec, bias=True)
    state, extra = tuple(rest[: spec.num_states]), tuple(rest[spec.num_states :])
    recurrent = RecurrentWeights(w_hh, b_hh, None, extra)

    out, last = one_direction.run(DERIVED, spec, x, state, LayerWeights(w_ih, b_ih, recurrent), way)
    expected, ends = unroll(spec, x @ w_ih.t() + b_ih, state, recurrent, way)
    for ours, theirs in zip((out, *last), (expected, *ends), strict=True):
        torch.testing.assert_close(ours, theirs)
    d = [torch.randn_like(t) for t in (out, *last)]
    ours_d = torch.autograd.grad((out, *last), given, d, materialize_grads=True)
    theirs_d = torch.autograd.grad((expected, *ends), given, d, materialize_grads=True)
    for i, (a, b) in enumerate(zip(ours_d, theirs_d, strict=True)):
        torch.testing.assert_close(a, b, msg=lambda m, i=i: f"input {i}: {m}")  # type: ignore[misc]
    with torch.no_grad():
        again, _ = one_direction.run(DERIVED, spec, x, state, LayerWeights(w_ih, b_ih, recurrent), way)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_loop_without_bias(name: str) -> None:
    torch.manual_seed(0)
    spec = spec_of(name, rule(name), DENSE)
    x, w_ih, _, w_hh, _, *state = leaves(spec, bias=True)
    weights = LayerWeights(w_ih, None, RecurrentWeights(w_hh))
    out, _ = one_direction.run(DERIVED, spec, x, tuple(state), weights, Steps())
    expected, *_ = getattr(functional, name)(x, *state, w_ih, w_hh)
    torch.testing.assert_close(out, expected)


def test_products_have_the_adjoint_of_their_product() -> None:
    torch.manual_seed(0)
    each: RecurrentProduct
    for each in PRODUCTS.values():
        w, h = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (each.shape(2, H), (B, H)))
        out = each.product(h, w)
        d = torch.randn_like(out)
        d_h, d_w = torch.autograd.grad(out, (h, w), d)
        with torch.no_grad():
            (step,) = each.flat(d.view(1, B, 2, H))
            for start in (None, h.detach().clone()):
                back = torch.empty_like(d_h)
                each.add_adjoint(start, step, w, back)
                torch.testing.assert_close(back, d_h if start is None else d_h + start)
            for base in (None, out.new_ones(2 * H), out.detach().clone()):
                found = torch.empty_like(out)
                each.add_product(base, h, each.factor(w), found)
                torch.testing.assert_close(found, out if base is None else out + base)
            torch.testing.assert_close(each.weight_gradient(d, h), d_w)
            torch.testing.assert_close(each.product(h, each.gates(w, 2, 1, 2)), out[:, H:])
