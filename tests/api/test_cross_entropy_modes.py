"""`functional.linear_cross_entropy` under autocast, compilers and transforms, without a graph, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure.profile import peak_memory
from fastcells.functional import linear_cross_entropy
from tests.support.accuracy import assert_equal_to_rounding, rms_error
from tests.support.loss_cases import WAYS, everything, given, small_chunks, theirs

__all__ = ["small_chunks"]
pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_chunks")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_wait_for_the_device(reduction: str) -> None:
    """Tensors without values: whoever asks for one raises. So would a GPU's be waited for."""
    leaves, target = given((300, 12, 17), grad=False)
    leaves = [leaf.to("meta").requires_grad_() for leaf in leaves]
    loss = linear_cross_entropy(*leaves, target.to("meta"), reduction=reduction, label_smoothing=0.1)
    gradients = torch.autograd.grad(loss, leaves, torch.empty_like(loss))
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, impl: str) -> None:
    leaves, target = given((40, 12, 17))
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = everything(theirs, wide, target, torch.ones(1))
    with torch.autocast("cpu", dtype):
        ours = everything(linear_cross_entropy, leaves, target, torch.ones(1), impl=impl)
        plain = everything(theirs, leaves, target, torch.ones(1))
    for reduction in ("mean", "none"):  # a backward inside one that the forward was not in
        loss = linear_cross_entropy(*leaves, target, impl=impl, reduction=reduction).sum()
        with torch.autocast("cpu", dtype):
            late = torch.autograd.grad(loss, leaves)
        assert_equal_to_rounding(late, torch.autograd.grad(theirs(*leaves, target, reduction=reduction).sum(), leaves))
    for o, p, e in zip(ours, plain, exact, strict=True):
        assert o.dtype == p.dtype == torch.float32
        assert rms_error(o, e) <= 2 * rms_error(p, e) + torch.finfo(dtype).eps


def test_the_dtype_of_the_loss() -> None:
    leaves, target = given((23, 12, 17), torch.bfloat16)
    loss = linear_cross_entropy(*leaves, target, dtype=torch.float32)
    assert loss.dtype == torch.float32
    assert linear_cross_entropy(*leaves, target).equal(loss.bfloat16())
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(loss, leaves))


@WAYS
def test_without_a_graph(impl: str) -> None:
    leaves, target = given((23, 12, 17))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = linear_cross_entropy(*leaves, target, impl=impl)
        assert not loss.requires_grad
        assert_equal_to_rounding([loss.clone()], [theirs(*leaves, target).detach()])


def test_nothing_of_the_users_is_changed() -> None:
    leaves, target = given((23, 12, 17))
    before = [t.detach().clone() for t in (*leaves, target)]
    linear_cross_entropy(*leaves, target, reduction="none").sum().backward()
    assert all(map(torch.equal, (*leaves, target), before))


def test_transforms() -> None:
    leaves, target = given((6, 3, 5), grad=False)

    def run(*leaves: Tensor) -> Tensor:
        return linear_cross_entropy(*leaves, target)

    def plain(*leaves: Tensor) -> Tensor:
        return theirs(*leaves, target)

    every = (0, 1, 2)
    assert_equal_to_rounding(torch.func.grad(run, every)(*leaves), torch.func.grad(plain, every)(*leaves))
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    assert_equal_to_rounding(
        torch.func.jvp(run, tuple(leaves), tangents), torch.func.jvp(plain, tuple(leaves), tangents)
    )
    several = torch.randn(4, 6, 3)
    results = [torch.func.vmap(torch.func.grad(f), (0, None, None))(several, *leaves[1:]) for f in (run, plain)]
    assert_equal_to_rounding([results[0]], [results[1]])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaves[0], tangents[0])
        assert torch.autograd.forward_ad.unpack_dual(run(dual, *leaves[1:])).tangent is not None


@pytest.mark.slow
def test_compiled() -> None:
    torch._dynamo.reset()
    run = torch.compile(linear_cross_entropy, fullgraph=True)
    for N in (23, 40):
        leaves, target = given((N, 12, 17))
        for options in ({}, {"reduction": "none", "label_smoothing": 0.1}):
            d = torch.randn(N if options else 1)
            results = [everything(f, leaves, target, d, **options) for f in (run, theirs)]
            assert_equal_to_rounding(*results)


def test_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of torch's where the vocabulary is large, gradients included."""
    monkeypatch.undo()
    leaves, target = given((2048, 16, 8000))
    peaks = {}
    for name, function in (("ours", linear_cross_entropy), ("theirs", theirs)):
        for impl in ({"impl": "auto"}, {"impl": "torch"}) if name == "ours" else ({},):

            def run(function: Any = function, impl: dict[str, str] = impl) -> object:
                return torch.autograd.grad(function(*leaves, target, **impl), leaves)

            run()
            peaks[(name, *impl.values())] = peak_memory(run, torch.device("cpu"), 1).allocated
    limit = peaks.pop(("theirs",)) / 5
    assert all(peak < limit for peak in peaks.values()), (peaks, limit)
