"""Derivatives of every kind, of layers and cells on dense input, ids and packed batches.

Each idiom is compared with loops of plain backward passes over the textbook's steps. Once in float64 at a short length,
where torch's operators run, and once in float32 at a length at which C does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from tests.support.accuracy import assert_equal_to_rounding
from tests.support.transform_cases import CASES, SIZED, SMALL, Kind, Size, each, floats, some_input, textbook, wrapped

N = 3  # samples to map over
Parameters = dict[str, Tensor]
Loss = Callable[[Parameters, Tensor], Tensor]


class Subject:
    """A module as a function of its weights and input, by us and by the textbook."""

    def __init__(self, kind: Kind, given: str, size: Size, dtype: torch.dtype) -> None:
        self.module = wrapped(kind, given, size, dtype)
        self.p = {name: w.detach().clone() for name, w in self.module.named_parameters()}
        self.bias = next(name for name in self.p if "bias_hh" in name)
        self.xs = some_input(kind, given, size, dtype, N)
        with torch.no_grad():
            # Three numbers of all outputs, so that a whole Jacobian is three backward passes.
            self.weights = [torch.randn(3, *t.shape).to(dtype) / t.numel() ** 0.5 for t in self._textbook(self.xs[0])]

    def _textbook(self, x: Tensor) -> list[Tensor]:
        return textbook(self.module, x)

    def _numbers(self, outs: list[Tensor]) -> Tensor:
        return torch.stack([sum((w[i] * t).sum() for w, t in zip(self.weights, outs, strict=True)) for i in range(3)])

    def ours(self, p: Parameters, x: Tensor) -> Tensor:
        return self._numbers(floats(functional_call(self.module, p, (x,))))

    def plain(self, p: Parameters, x: Tensor) -> Tensor:
        return self._numbers(functional_call(Textbook(self.module), {f"module.{k}": w for k, w in p.items()}, (x,)))

    def ours_of_bias(self, b: Tensor) -> Tensor:
        return self.ours({**self.p, self.bias: b}, self.xs[0])

    def plain_of_bias(self, b: Tensor) -> Tensor:
        return self.plain({**self.p, self.bias: b}, self.xs[0])

    def leaves(self) -> Parameters:
        return {k: w.clone().requires_grad_() for k, w in self.p.items()}

    def jacobian(self, x: Tensor) -> list[Tensor]:
        """By three plain backward passes; [3, ...] each."""
        p = self.leaves()
        out = self.plain(p, x)
        rows = [torch.autograd.grad(o, list(p.values()), retain_graph=True, materialize_grads=True) for o in out]
        return [torch.stack(r) for r in zip(*rows, strict=True)]


class Textbook(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> list[Tensor]:
        return textbook(self.module, x)


def jacobian_by_jacrev(s: Subject) -> list[Tensor]:
    return list(jacrev(s.ours)(s.p, s.xs[0]).values())


def jacobian_by_is_grads_batched(s: Subject) -> list[Tensor]:
    p = s.leaves()
    out = s.ours(p, s.xs[0])
    rows = torch.eye(3, dtype=out.dtype)
    return list(torch.autograd.grad(out, list(p.values()), rows, is_grads_batched=True, materialize_grads=True))


def jacobian_vectorized(s: Subject) -> list[Tensor]:
    names = list(s.p)

    def f(*values: Tensor) -> Tensor:
        return s.ours(dict(zip(names, values, strict=True)), s.xs[0])

    return list(torch.autograd.functional.jacobian(f, tuple(s.p.values()), vectorize=True))


def jacobian_checkpointed(s: Subject) -> list[Tensor]:
    rows = []
    for i in range(3):
        p = s.leaves()
        out = checkpoint(s.ours, p, s.xs[0], use_reentrant=False)
        rows.append(torch.autograd.grad(out[i], list(p.values()), materialize_grads=True))
    return [torch.stack(r) for r in zip(*rows, strict=True)]


JACOBIANS: dict[str, Callable[[Subject], list[Tensor]]] = {
    "jacrev": jacobian_by_jacrev,
    "is_grads_batched": jacobian_by_is_grads_batched,
    "vectorize": jacobian_vectorized,
    "checkpoint": jacobian_checkpointed,
}


@pytest.mark.parametrize("idiom", JACOBIANS)
@each(SIZED)
@pytest.mark.slow
def test_jacobian(kind: Kind, given: str, size: Size, dtype: torch.dtype, idiom: str) -> None:
    s = Subject(kind, given, size, dtype)
    assert_equal_to_rounding(JACOBIANS[idiom](s), s.jacobian(s.xs[0]))


@each(SIZED)
def test_forward_mode(kind: Kind, given: str, size: Size, dtype: torch.dtype) -> None:
    s = Subject(kind, given, size, dtype)
    v = {k: torch.randn_like(w) for k, w in s.p.items()}
    expected = sum(j.flatten(1) @ v[k].flatten() for j, k in zip(s.jacobian(s.xs[0]), s.p, strict=True))
    assert_equal_to_rounding([jvp(lambda p: s.ours(p, s.xs[0]), (s.p,), (v,))[1]], [expected])
    with forward_ad.dual_level():
        out = s.ours({k: forward_ad.make_dual(w, v[k]) for k, w in s.p.items()}, s.xs[0])
        assert_equal_to_rounding([forward_ad.unpack_dual(out).tangent], [expected])


@each(CASES)
@pytest.mark.slow
def test_second_derivatives(kind: Kind, given: str) -> None:
    s = Subject(kind, given, SMALL, torch.float64)
    b = s.p[s.bias]
    expected = torch.stack([torch.autograd.functional.hessian(lambda b, i=i: s.plain_of_bias(b)[i], b) for i in (0, 1)])
    assert expected.any() or "relu" in kind.name
    for twice in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        assert_equal_to_rounding([twice(s.ours_of_bias)(b)[:2]], [expected])
    by_autograd = torch.autograd.functional.hessian(lambda b: s.ours_of_bias(b)[0], b, vectorize=True)
    assert_equal_to_rounding([by_autograd], [expected[0]])


@each(SIZED)
@pytest.mark.slow
def test_samples(kind: Kind, given: str, size: Size, dtype: torch.dtype) -> None:
    """vmap over inputs: outputs, gradients of each sample, and a plain backward through the mapped outputs."""
    s = Subject(kind, given, size, dtype)
    with torch.no_grad():
        assert_equal_to_rounding([vmap(s.ours, (None, 0))(s.p, s.xs)], [torch.stack([s.plain(s.p, x) for x in s.xs])])
    expected = [torch.stack(j) for j in zip(*(s.jacobian(x) for x in s.xs), strict=True)]  # [N, 3, ...]
    alone = vmap(grad(lambda p, x: s.ours(p, x)[0]), (None, 0))(s.p, s.xs)
    assert_equal_to_rounding(alone.values(), [j[:, 0] for j in expected])
    p = s.leaves()
    out = vmap(s.ours, (None, 0))(p, s.xs)
    weights = torch.randn_like(out)
    sums = torch.autograd.grad(out, list(p.values()), weights, materialize_grads=True)
    assert_equal_to_rounding(sums, [torch.einsum("ni,ni...->...", weights, j) for j in expected])


@each(SIZED)
def test_ensemble(kind: Kind, given: str, size: Size, dtype: torch.dtype) -> None:
    """vmap over stacked weights (pytorch#105982), and over them with one input for all; gradients through it."""
    s = Subject(kind, given, size, dtype)
    stacked = {k: torch.stack([w, 0.5 * w, -w]).requires_grad_() for k, w in s.p.items()}
    for x, dim in ((s.xs, 0), (s.xs[0], None)):
        out = vmap(s.ours, (0, dim))(stacked, x)
        weights = torch.randn_like(out)
        alone = torch.stack(
            [s.plain({k: w[n] for k, w in stacked.items()}, x if dim is None else x[n]) for n in range(N)]
        )
        results = [
            [o, *torch.autograd.grad(o, list(stacked.values()), weights, materialize_grads=True)] for o in (out, alone)
        ]
        assert_equal_to_rounding(*results)
