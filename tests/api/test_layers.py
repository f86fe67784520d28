"""The layers in place of torch.nn's: numbers, state, attributes, copies, weights that are shared or parametrized."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import reference
from tests.support.accuracy import assert_equal_to_rounding, cotangents
from tests.support.layer_cases import (
    EACH,
    EACH_OWN,
    KINDS,
    LAYOUTS,
    OWN,
    STACK,
    B,
    H,
    I,
    T,
    assert_identical,
    own_case,
    pair,
    some,
    some_hx,
    some_input,
)
from tests.support.shapes import gradients


@pytest.mark.parametrize("given", [True, False], ids=["hx", "zero_hx"])
@pytest.mark.parametrize("layout", LAYOUTS)
@STACK
@EACH
@pytest.mark.slow
def test_same_numbers(kind: str, stack: dict[str, Any], layout: str, given: bool) -> None:
    theirs, ours = pair(kind, **stack)
    x, leaves = some_input(ours, layout)
    hx = some_hx(ours, *(() if layout == "unbatched" else (B,))) if given else None
    results = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        out = module(x, hx)
        floats = [t for t in tree_leaves(out) if t is not None and t.is_floating_point()]
        inputs = [*leaves, *([] if hx is None else tree_leaves(hx)), *module.parameters()]
        d = cotangents(floats)
        results.append((out, torch.autograd.grad(floats, inputs, d, retain_graph=True)))
    assert_identical(results[1], results[0])


@STACK
@EACH
def test_state_repr_and_attributes(kind: str, stack: dict[str, Any]) -> None:
    theirs, ours = pair(kind, **stack)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_identical(list(ours.parameters()), list(theirs.parameters()))
    assert_identical(ours.all_weights, theirs.all_weights)
    assert repr(ours) == repr(theirs)
    assert {k: v for k, v in vars(theirs).items() if not k.startswith("_")}.items() <= vars(ours).items()


def test_own_options_in_repr() -> None:
    assert repr(fastcells.GRU(2, 3, 2, reset_after=False)) == "GRU(2, 3, num_layers=2, reset_after=False)"
    assert repr(fastcells.LSTM(2, 3, impl="torch")) == "LSTM(2, 3, impl='torch')"


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
@pytest.mark.parametrize("kind", [*KINDS, "reset_before"])
def test_copies(kind: str, how: str) -> None:
    ours = own_case(kind, num_layers=2)[0] if kind == "reset_before" else pair(kind, num_layers=2)[1]
    if how == "save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    assert repr(other) == repr(ours)
    x = some(T, B, I)
    assert_identical(other(x), ours(x))
    nn.init.zeros_(other.weight_hh_l0)
    assert ours.weight_hh_l0.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@EACH
def test_conversion_of_dtype(kind: str, dtype: torch.dtype) -> None:
    theirs, ours = (m.to(dtype) for m in pair(kind, torch.float32, num_layers=2))
    ours.impl = "torch"  # "auto" may take C for bfloat16
    x = some(T, B, I).to(dtype)
    assert_identical(ours(x), theirs(x))


@EACH_OWN
def test_backward_in_eval_mode(own: str) -> None:
    module, x = own_case(own, num_layers=2, dropout=0.5)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        out = module.eval()(x)[0]
        runs.append([out, *torch.autograd.grad(out, list(module.parameters()), cotangents([out]))])
    assert_identical(*runs)
    assert not torch.equal(module.train()(x)[0], runs[0][0])


@pytest.mark.parametrize("own", ["dense", *OWN])
def test_shared_weight(own: str) -> None:
    module, x = own_case(own, num_layers=2) if own in OWN else (pair("GRU", num_layers=2)[1], some(T, B, I))
    module.weight_hh_l1 = module.weight_hh_l0
    out, expected = module(x)[0], reference.layer(module, x)[0]
    d = cotangents([out])
    assert len(list(module.parameters())) == 7
    inputs = list(module.parameters())
    assert_equal_to_rounding(gradients((out,), inputs, d), gradients((expected,), inputs, d))


WRAPPERS = {
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "old_weight_norm": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("own", ["dense", *OWN])
def test_parametrized_weight(own: str, wrapper: str) -> None:
    module, x = own_case(own) if own in OWN else (pair("GRU")[1], some(T, B, I))
    WRAPPERS[wrapper](module)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        out = module(x)[0]
        plain = fastcells.GRU(I, H, reset_after=module.reset_after, dtype=torch.float64)
        plain.load_state_dict({name: getattr(module, name) for name, _ in plain.named_parameters()})
        assert_equal_to_rounding([out], [plain(x)[0]])
        out.backward(torch.randn_like(out))
        assert all(p.grad is not None and p.grad.any() for p in module.parameters()), f"step {step}"
        optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in module.named_parameters())
