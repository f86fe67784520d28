"""`functional.linear_cross_entropy` beside `F.cross_entropy(F.linear(...))`: numbers, derivatives, errors, memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.functional import linear_cross_entropy
from tests.support.accuracy import assert_equal_to_rounding, rms_error
from tests.support.loss_cases import WAYS, allowed, everything, given, small_chunks, theirs

__all__ = ["small_chunks"]
pytestmark = pytest.mark.usefixtures("poisoned_memory", "small_chunks")
# rows, H, V: size 1 in every place, vectors cut off, several chunks of rows and of columns, sums of several parts
SHAPES = [(1, 1, 1), (5, 1, 2), (1, 7, 33), (23, 12, 17), (40, 9, 64), (130, 33, 300), (9, 5, 700)]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "N{}-H{}-V{}".format(*s))
OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
    for reduction, smoothing, ignored in itertools.product(("mean", "sum", "none"), (0.0, 0.1, 1.0), (-100, 0))
]
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))


@WAYS
@EACH_OPTION
@EACH_SHAPE
def test_accuracy(shape: tuple[int, int, int], options: dict[str, Any], impl: str) -> None:
    """At most twice the error of torch's, against float64; in bfloat16 as well."""
    for dtype in (torch.float32, torch.bfloat16):
        leaves, target = given(shape, dtype)
        target = allowed(target, options)
        d = torch.randn(shape[0] if options["reduction"] == "none" else 1, dtype=torch.float64)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        exact = everything(theirs, wide, target, d.to(dtype), **options)
        plain = everything(theirs, leaves, target, d, **options)
        ours = everything(linear_cross_entropy, leaves, target, d, impl=impl, **options)
        for name, o, p, e in zip(("loss", "d_hidden", "d_weight", "d_bias"), ours, plain, exact, strict=True):
            assert o.dtype == p.dtype and o.shape == p.shape
            if e.isnan().any():  # the mean of no rows
                assert o.isnan().all() and p.isnan().all()
            else:
                assert rms_error(o, e) <= 2 * rms_error(p, e) + torch.finfo(dtype).eps, f"{name}, {dtype}"


@WAYS
@EACH_OPTION
def test_float64_to_rounding(options: dict[str, Any], impl: str) -> None:
    leaves, target = given((23, 12, 17), torch.float64)
    d = torch.randn(23 if options["reduction"] == "none" else 1, dtype=torch.float64)
    for shift in (0.0, 1e4, -1e4):  # an exponential would overflow, all of them vanish
        with torch.no_grad():
            leaves[2].fill_(shift)
        results = [
            everything(function, leaves, allowed(target, options), d, **options, **extra)
            for function, extra in ((linear_cross_entropy, {"impl": impl}), (theirs, {}))
        ]
        assert_equal_to_rounding(*results)


@EACH_OPTION
def test_gradcheck(options: dict[str, Any]) -> None:
    """First and second derivatives; the same function of float32 has C's first ones."""
    leaves, target = given((6, 3, 5), torch.float64)
    target = allowed(target, options)

    def run(*leaves: Tensor) -> Tensor:
        return linear_cross_entropy(*leaves, target, **options)

    assert torch.autograd.gradcheck(run, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


def second(function: Any, leaves: list[Tensor], target: Tensor, **options: Any) -> list[Tensor]:
    """Gradients of a norm of the gradients."""
    first = torch.autograd.grad(function(*leaves, target, **options).sum(), leaves, create_graph=True)
    return list(torch.autograd.grad(sum((g**2).sum() for g in first), leaves))


@EACH_OPTION
def test_second_derivatives_behind_c(options: dict[str, Any]) -> None:
    leaves, target = given((23, 12, 17))
    target = allowed(target, options)
    assert_equal_to_rounding(
        second(linear_cross_entropy, leaves, target, **options), second(theirs, leaves, target, **options)
    )


@WAYS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_what_is_wanted(wanted: tuple[bool, bool, bool], reduction: str, impl: str) -> None:
    """Every subset of gradients, with and without a bias; nothing else is computed."""
    leaves, target = given((23, 12, 17), grad=False)
    for given_bias in (True, False):
        some = [leaf.detach().requires_grad_(w) for leaf, w in zip(leaves, wanted, strict=True)]
        args = some if given_bias else [*some[:2], None]
        loss = linear_cross_entropy(*args, target, reduction=reduction, impl=impl)
        expected = theirs(*args, target, reduction=reduction)
        assert_equal_to_rounding([loss.detach()], [expected.detach()])
        needed = [leaf for leaf in args if leaf is not None and leaf.requires_grad]
        assert loss.requires_grad == bool(needed)
        if needed:
            d = torch.randn_like(loss)
            assert_equal_to_rounding(torch.autograd.grad(loss, needed, d), torch.autograd.grad(expected, needed, d))


@WAYS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_graph_that_is_kept(reduction: str, impl: str) -> None:
    """The second backward gives the same, even where what the first gave was changed."""
    leaves, target = given((23, 12, 17))
    loss = linear_cross_entropy(*leaves, target, reduction=reduction, impl=impl).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    loss.backward(retain_graph=True)
    for leaf in leaves:
        assert leaf.grad is not None
        leaf.grad.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, leaves, retain_graph=True), kept))
    third = torch.autograd.grad(loss, leaves, torch.tensor(3.0))
    assert_equal_to_rounding(third, [3 * g for g in kept])


@WAYS
def test_shapes_and_kinds_of_targets(impl: str) -> None:
    """Unbatched, more dimensions, rows that lie apart, uint8, none at all, all ignored."""
    weight, bias = torch.randn(17, 12, requires_grad=True), torch.randn(17, requires_grad=True)
    apart = torch.randn(2, 9, 12).transpose(0, 1)
    cases = [
        (torch.randn(12), torch.tensor(3)),
        (torch.randn(2, 9, 12), torch.randint(17, (2, 9))),
        (apart, torch.randint(17, (9, 2))),
        (torch.randn(2, 9, 12), torch.randint(17, (2, 9), dtype=torch.uint8)),
        (torch.randn(0, 12), torch.randint(17, (0,))),
        (torch.randn(2, 0, 12), torch.randint(17, (2, 0))),
        (torch.randn(9, 12), torch.full((9,), -100)),
    ]
    for hidden, target in cases:
        leaves = [hidden.requires_grad_(), weight, bias]
        for reduction, smoothing in itertools.product(("mean", "sum", "none"), (0.0, 0.1)):
            options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
            ours, expected = (
                linear_cross_entropy(*leaves, target, impl=impl, **options),
                theirs(*leaves, target, **options),
            )
            assert ours.shape == expected.shape
            torch.testing.assert_close(ours, expected, equal_nan=True)
            # Of rows that are all ignored, the gradients are 0 on both sides.
            assert_equal_to_rounding(*(torch.autograd.grad(loss.sum(), leaves) for loss in (ours, expected)))


GOOD: dict[str, Any] = {
    "hidden": torch.randn(5, 4),
    "weight": torch.randn(7, 4),
    "bias": torch.randn(7),
    "target": torch.tensor([0, 1, 2, 3, 6]),
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"target": torch.tensor([0, 1, 7, 3, 6])}, r"Target 7 at \[2\] of shape \[5\] is out of bounds"),
    ({"target": torch.tensor([0, 1, 2, -1, 6])}, r"Target -1 at \[3\]"),
    ({"target": torch.tensor([0, 1, 2, 3])}, r"\[4\] does not fit hidden of shape \[5, 4\]"),
    ({"target": torch.tensor([[0, 1, 2, 3, 6]])}, r"\[1, 5\]"),
    ({"target": torch.rand(5)}, r"torch.float32 \[5\]"),
    ({"target": torch.tensor([0, 1, 2, 3, 6]).int()}, r"torch.int32 \[5\]"),
    ({"target": torch.ones(5, dtype=torch.bool)}, r"torch.bool"),
    ({"hidden": torch.randn(5, 3)}, r"\[5, 3\] does not fit weight of shape \[7, 4\]"),
    ({"weight": torch.randn(4)}, r"\[4\]"),
    ({"bias": torch.randn(6)}, r"\[7\], got \[6\]"),
    ({"hidden": torch.randn(5, 4, dtype=torch.float64)}, r"torch.float64.*torch.float32"),
    ({"reduction": "average"}, r"average' is not a valid value for reduction"),
    ({"label_smoothing": 1.5}, r"1.5"),
    ({"weight": torch.randn(0, 4), "bias": torch.randn(0)}, r"out of bounds"),
]


def torchs(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), target, **options)


@pytest.mark.parametrize(("bad", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_errors_are_of_the_same_type(bad: dict[str, Any], message: str) -> None:
    linear_cross_entropy(**GOOD)
    arguments = {**GOOD, **bad}
    with pytest.raises((IndexError, ValueError, RuntimeError)) as raised:
        linear_cross_entropy(**arguments)
    with pytest.raises(raised.type):
        torchs(**arguments)
    assert raised.match(message)


def test_a_target_outside_is_found_among_many() -> None:
    hidden, target = torch.randn(2, 9, 4, requires_grad=True), torch.zeros(2, 9, dtype=torch.long)
    target[0, 0], target[1, 3] = -100, 9
    for leaf in (hidden, hidden.detach()):  # with a graph and without, by C's one call
        with pytest.raises(IndexError, match=r"Target 9 at \[1, 3\] of shape \[2, 9\]"):
            linear_cross_entropy(leaf, torch.randn(7, 4), None, target)
