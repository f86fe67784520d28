"""The cells in place of torch.nn's."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import reference
from tests.support.accuracy import assert_equal_to_rounding, cotangents
from tests.support.shapes import gradients

I, B, H = 5, 4, 7  # noqa: E741
KINDS = {
    "RNNCell": (nn.RNNCell, fastcells.RNNCell, {}),
    "RNNCell-relu": (nn.RNNCell, fastcells.RNNCell, {"nonlinearity": "relu"}),
    "GRUCell": (nn.GRUCell, fastcells.GRUCell, {}),
    "LSTMCell": (nn.LSTMCell, fastcells.LSTMCell, {}),
}
EACH = pytest.mark.parametrize("kind", KINDS)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
BATCH = pytest.mark.parametrize("batch", [(B,), (), (1,), (0,)], ids=["batch", "unbatched", "B1", "B0"])
HX = pytest.mark.parametrize("given", [True, False], ids=["hx", "zero_hx"])


def pair(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch's cell and ours with the same numbers in them."""
    theirs_cls, ours_cls, own = KINDS[kind]
    theirs = theirs_cls(I, H, **own, **options).double()
    ours = ours_cls(I, H, **own, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def some(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def some_hx(kind: str, *batch: int) -> Any:
    return (some(*batch, H), some(*batch, H)) if kind == "LSTMCell" else some(*batch, H)


@HX
@BATCH
@BIAS
@EACH
def test_same_numbers(kind: str, bias: bool, batch: tuple[int, ...], given: bool) -> None:
    theirs, ours = pair(kind, bias=bias)
    x, hx = some(*batch, I), some_hx(kind, *batch) if given else None
    expected, actual = theirs(x, hx), ours(x, hx)
    assert type(actual) is type(expected)
    expected, actual = tree_leaves(expected), tree_leaves(actual)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    d, inputs = cotangents(expected), [x, *([] if hx is None else tree_leaves(hx))]
    actual = gradients(actual, [*inputs, *ours.parameters()], d)
    expected = gradients(expected, [*inputs, *theirs.parameters()], d)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@HX
@BATCH
@BIAS
def test_reset_before(bias: bool, batch: tuple[int, ...], given: bool) -> None:
    cell = fastcells.GRUCell(I, H, bias=bias, reset_after=False).double()
    x, hx = some(*batch, I), some(*batch, H) if given else None
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    start = torch.zeros(*batch, H, dtype=torch.float64) if hx is None else hx
    actual, expected = cell(x, hx), reference.gru_cell(x, start, *weights, reset_after=False)
    assert_equal_to_rounding([actual], [expected])
    inputs, d = [x, *([hx] if given else []), *cell.parameters()], cotangents([expected])
    assert_equal_to_rounding(gradients((actual,), inputs, d), gradients((expected,), inputs, d))


def test_reset_before_is_another_function() -> None:
    cell = fastcells.GRUCell(I, H, reset_after=False).double()
    after = fastcells.GRUCell(I, H).double()
    after.load_state_dict(cell.state_dict())
    x, hx = some(B, I), some(B, H)
    assert (cell(x, hx) - after(x, hx)).abs().max() > 1e-3  # a size of the difference, not of a rounding


BAD_CALLS = {
    "input-3D": lambda kind: (some(1, B, I), some_hx(kind, B)),
    "input-0D": lambda kind: (some(), some_hx(kind, B)),
    "input-size": lambda kind: (some(B, I + 1), some_hx(kind, B)),
    "input-size-unbatched": lambda kind: (some(I - 1), None),
    "hx-3D": lambda kind: (some(B, I), some_hx(kind, 1, B)),
    "hx-batch": lambda kind: (some(B, I), some_hx(kind, B + 1)),
    "hx-unbatched": lambda kind: (some(B, I), some_hx(kind)),
    "hx-batched": lambda kind: (some(I), some_hx(kind, B)),
    "input-dtype": lambda kind: (some(B, I).float(), some_hx(kind, B)),
    "hx-dtype": lambda kind: (some(B, I), torch.utils._pytree.tree_map(Tensor.float, some_hx(kind, B))),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
@EACH
def test_same_errors(kind: str, bad: str) -> None:
    theirs, ours = pair(kind)
    args = BAD_CALLS[bad](kind)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(*args)
    with pytest.raises(expected.type) as caught:
        ours(*args)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("bad", ["input-size", "hx-batch", "hx-unbatched", "hx-batched", "input-dtype", "hx-dtype"])
def test_reset_before_errors(bad: str) -> None:
    with pytest.raises(RuntimeError, match=r"\[\d+, \d+\]|\d+x\d+|dtype"):
        fastcells.GRUCell(I, H, reset_after=False).double()(*BAD_CALLS[bad]("GRUCell"))


def test_bad_options() -> None:
    for cls in (fastcells.RNNCell, fastcells.GRUCell, fastcells.LSTMCell):
        with pytest.raises(ValueError, match=r"'auto', 'torch'.*'nonsense'"):
            cls(I, H, impl="nonsense")
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: int"):
        fastcells.GRUCell(I, H, reset_after=0)
    for cls in (nn.RNNCell, fastcells.RNNCell):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
            cls(I, H, nonlinearity="sin")(torch.randn(B, I))


@BIAS
@EACH
def test_state_dict_both_ways(kind: str, bias: bool) -> None:
    theirs, ours = pair(kind, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@EACH
def test_same_initial_numbers(kind: str) -> None:
    theirs_cls, ours_cls, own = KINDS[kind]
    torch.manual_seed(1)
    theirs = theirs_cls(I, H, dtype=torch.float64, **own)
    torch.manual_seed(1)
    ours = ours_cls(I, H, dtype=torch.float64, **own)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@BIAS
@EACH
def test_repr_and_attributes(kind: str, bias: bool) -> None:
    theirs, ours = pair(kind, bias=bias)
    assert repr(ours) == repr(theirs)
    assert {k: v for k, v in vars(theirs).items() if not k.startswith("_")}.items() <= vars(ours).items()


def test_own_options_in_repr() -> None:
    assert repr(fastcells.GRUCell(2, 3, reset_after=False)) == "GRUCell(2, 3, reset_after=False)"
    assert repr(fastcells.LSTMCell(2, 3, impl="torch")) == "LSTMCell(2, 3, impl='torch')"


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
@EACH
def test_copies(kind: str, how: str) -> None:
    _, ours = pair(kind)
    ours = fastcells.GRUCell(I, H, reset_after=False).double() if kind == "GRUCell" else ours
    if how == "save":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    x = some(B, I)
    assert repr(other) == repr(ours)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(other(x)), tree_leaves(ours(x)), strict=True))
    for p in other.parameters():
        assert all(p is not q for q in ours.parameters())


@EACH
def test_autocast(kind: str) -> None:
    """Ids have the dtype that the one-hot vectors have, and those the one of torch's cell."""
    theirs, ours = (m.float() for m in pair(kind))
    ids = torch.randint(I, (B,))
    x = nn.functional.one_hot(ids, I).float()
    for hx in (None, torch.utils._pytree.tree_map(lambda t: t.float(), some_hx(kind, B))):
        with torch.autocast("cpu", torch.bfloat16):
            outs = [theirs(x, hx), ours(x, hx), ours(ids, hx)]
        dtypes = [[t.dtype for t in tree_leaves(o)] for o in outs]
        assert dtypes[0] == dtypes[1] == dtypes[2]


def test_transforms() -> None:
    """Per-sample gradients, forward mode and the Hessian of the cell that ATen has not."""
    cell = fastcells.GRUCell(I, H, reset_after=False).double()
    x, v = some(B, I).detach(), torch.randn(B, H, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in cell.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, v: Tensor) -> Tensor:
        return (torch.func.functional_call(cell, p, x) * v).sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, v)
    for b in range(B):
        alone = torch.func.grad(loss)(parameters, x[b], v[b])
        assert_equal_to_rounding([g[b] for g in together.values()], alone.values())
    _, slope = torch.func.jvp(lambda x: loss(parameters, x, v), (x,), (torch.ones_like(x),))
    assert_equal_to_rounding([slope], [torch.func.grad(loss, 1)(parameters, x, v).sum()])
    hessian = torch.func.hessian(loss, 1)(parameters, x[0], v[0])
    assert_equal_to_rounding([hessian], [hessian.mT])
    compiled = torch.compile(cell, fullgraph=True, backend="eager")
    assert_equal_to_rounding([compiled(x)], [cell(x)])
