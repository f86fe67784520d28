"""Both directions of a layer at once: the same numbers as torch.nn's, in one launch for each pass.

The launches are a stand-in's, on the CPU; those of the Gluon kernels are executed in tests/ptx/test_layers.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import both_directions
from fastcells.backends import BACKENDS
from fastcells.backends.base import Steps
from fastcells.spec import GRU_RESET_AFTER
from tests.support.accuracy import assert_equal_to_rounding, cotangents
from tests.support.both_stand_in import BothStandIn
from tests.support.layer_cases import LAYOUTS, B, H, I, T, pair, some, some_hx, some_input
from tests.support.shapes import gradients

KINDS = ["RNN", "RNN-relu", "GRU", "LSTM"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> BothStandIn:
    backend = BothStandIn()
    monkeypatch.setitem(BACKENDS, "gluon", backend)
    return backend


def both(kind: str, **options: Any) -> tuple[nn.RNNBase, Any]:
    theirs, ours = pair(kind, bidirectional=True, **options)
    ours.impl = "gluon"
    return theirs, ours


def results(module: nn.RNNBase, x: Any, inputs: list[Tensor], hx: Any = None) -> tuple[list[Tensor], list[Tensor]]:
    """What comes out, and the gradients of inputs and weights for random ones of what comes out."""
    torch.manual_seed(1)
    out = [t for t in tree_leaves(module(x, hx)) if t is not None and t.is_floating_point()]
    return out, list(torch.autograd.grad(out, [*inputs, *module.parameters()], cotangents(out), retain_graph=True))


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
def test_gradients_of_the_weights_lie_as_the_weights_do(stand_in: BothStandIn, ids: bool) -> None:
    """`grad.view(-1)` is everyday code."""
    _, ours = both("GRU")
    out = ours(torch.randint(I, (T, B)) if ids else some(T, B, I))[0]
    assert stand_in.launches == ["forward"]
    assert all(d.is_contiguous() for d in torch.autograd.grad(out, list(ours.parameters()), torch.randn_like(out)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bias": False, "batch_first": True}], ids=["one", "stack"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers(stand_in: BothStandIn, kind: str, options: dict[str, Any], layout: str) -> None:
    theirs, ours = both(kind, **options)
    x, leaves = some_input(ours, layout)
    hx = some_hx(ours, *(() if layout == "unbatched" else (B,)))
    expected = results(theirs, x, [*leaves, *tree_leaves(hx)], hx)
    actual = results(ours, x, [*leaves, *tree_leaves(hx)], hx)
    for a, e in zip(actual, expected, strict=True):
        assert_equal_to_rounding(a, e)
    layers = options.get("num_layers", 1)
    assert stand_in.launches == ["forward"] * layers + ["backward"] * layers


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_token_ids(stand_in: BothStandIn, kind: str, ragged: bool, bias: bool) -> None:
    theirs, ours = both(kind, bias=bias, num_layers=2)
    ids = torch.randint(I, (T, B))
    hot = F.one_hot(ids, I).double()
    if ragged:
        lengths = torch.tensor([6, 4, 4, 1])
        ids, hot = (nn.utils.rnn.pack_padded_sequence(x, lengths) for x in (ids, hot))
    for a, e in zip(results(ours, ids, []), results(theirs, hot, []), strict=True):
        assert_equal_to_rounding(a, e)
    assert stand_in.launches == ["forward", "forward", "backward", "backward"]


def test_reset_before(stand_in: BothStandIn) -> None:
    ours = fastcells.GRU(I, H, 2, bidirectional=True, reset_after=False, impl="gluon", dtype=torch.float64)
    x = some(T, B, I)
    actual = results(ours, x, [x])
    ours.impl = "torch"
    for a, e in zip(actual, results(ours, x, [x]), strict=True):
        assert_equal_to_rounding(a, e)
    assert len(stand_in.launches) == 4


@pytest.mark.parametrize("ids", [False, True], ids=["dense", "ids"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_second_derivatives(stand_in: BothStandIn, kind: str, ids: bool) -> None:
    theirs, ours = both(kind, num_layers=2)
    tokens = torch.randint(I, (T, B))
    found: list[list[Tensor]] = []
    again: list[Tensor] = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        x = F.one_hot(tokens, I).double() if ids else torch.randn(T, B, I, dtype=torch.float64).requires_grad_()
        hx = some_hx(module, B)
        leaves = [*([] if ids else [x]), *tree_leaves(hx), *module.parameters()]
        out = tree_leaves(module(tokens if ids and module is ours else x, hx))
        first = torch.autograd.grad(out, leaves, cotangents(out), create_graph=True)
        again = again or cotangents(first)
        found.append([*first, *gradients(first, leaves, again)])
    assert_equal_to_rounding(found[1], found[0])


def test_batched_gradients(stand_in: BothStandIn) -> None:
    _, ours = both("LSTM")
    out = ours(some(T, B, I))[0]
    d = torch.randn(3, *out.shape, dtype=torch.float64)
    batched = torch.autograd.grad(out, list(ours.parameters()), d, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        one = torch.autograd.grad(out, list(ours.parameters()), d[i], retain_graph=True)
        assert_equal_to_rounding([b[i] for b in batched], one)


def test_without_gradients(stand_in: BothStandIn) -> None:
    theirs, ours = both("LSTM")
    x = some(T, B, I)
    with torch.no_grad():
        assert_equal_to_rounding(tree_leaves(ours(x)), tree_leaves(theirs(x)))
    for p in ours.parameters():
        p.requires_grad_(False)
    out, last = ours(x)
    assert_equal_to_rounding(
        torch.autograd.grad(out.sum() + last[1].sum(), [x]),
        torch.autograd.grad((found := theirs(x))[0].sum() + found[1][1].sum(), [x]),
    )


def test_what_is_frozen_gets_no_gradient(stand_in: BothStandIn) -> None:
    theirs, ours = both("GRU")
    for module in (theirs, ours):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l0_reverse.requires_grad_(False)
    x = some(T, B, I)
    found = []
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert [g is None for g in found[0]] == [g is None for g in found[1]]
    assert_equal_to_rounding([g for g in found[1] if g is not None], [g for g in found[0] if g is not None])


def test_a_weight_changed_in_place_is_seen(stand_in: BothStandIn) -> None:
    _, ours = both("GRU")
    out = ours(some(T, B, I))[0]
    with torch.no_grad():
        ours.weight_hh_l0_reverse.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(torch.randn_like(out))


def test_autocast(stand_in: BothStandIn) -> None:
    _, ours = pair("LSTM", torch.float32, bidirectional=True)
    ours.impl = "gluon"
    x = torch.randn(T, B, I, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, (h, c) = ours(x)
    assert out.dtype == h.dtype == c.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), [x, *ours.parameters()])
    ours.impl = "torch"
    exact = ours(x)[0]
    assert (out - exact).abs().max() < 0.02
    for g, e in zip(grads, torch.autograd.grad(exact.sum(), [x, *ours.parameters()]), strict=True):
        assert g.dtype == torch.float32
        assert (g - e).abs().max() < 0.02 * e.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_zeros_past_a_rows_length(stand_in: BothStandIn, grad: bool) -> None:
    _, ours = both("GRU")
    weights = [ours._weights_of(i, list(ours.parameters())) for i in (0, 1)]
    choice, lengths = both_directions.together([stand_in.choose(None, "test")] * 2)[0], torch.tensor([6, 3, 1, 0])
    steps, h0 = Steps(lengths=lengths.int()), torch.ones(2, B, H, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        out, (last,) = both_directions.run(choice, GRU_RESET_AFTER, some(T, B, I), (h0,), weights, steps)
    past = torch.arange(T)[:, None] >= lengths
    assert (out[past] == 0).all()
    assert (out[~past] != 0).all()
    assert torch.equal(last[:, 3], h0[:, 3]), "a row without a step"


def test_errors(stand_in: BothStandIn) -> None:
    _, ours = both("GRU")
    x = some(T, B, I)
    with pytest.raises(RuntimeError, match=r"h0 has dtype torch\.float32 and the weights have torch\.float64"):
        ours(x, torch.zeros(2, B, H))
    with pytest.raises(IndexError, match="outside"):
        ours(torch.full((T, B), I))
    with pytest.raises(fastcells.CannotRun, match="impl='torch' does"):
        torch.func.vmap(lambda x: ours(x)[0])(some(2, T, B, I))


def test_explain_says_so(stand_in: BothStandIn) -> None:
    _, ours = both("GRU", num_layers=2)
    found = fastcells.explain(ours, some(T, B, I))
    assert list(found) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert found.path == "both directions"
    single = pair("GRU")[1]
    single.impl = "gluon"
    assert fastcells.explain(single, some(T, B, I)).path == "resident"
    assert stand_in.launches == []
