"""An LSTM's projection around recurrences that have none: the algebra in float64, and the backends that use it.

Three-way for the backends: err(ours) <= 2 * err(torch's in the same dtype) + eps, both against float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastcells
from fastcells import functional, projection
from fastcells.autograd import unroll
from fastcells.backends.base import Steps
from fastcells.backends.cpu import native
from fastcells.spec import LSTM, RecurrentWeights
from tests.support.accuracy import assert_equal_to_rounding, cotangents, error, rms_error

pytestmark = pytest.mark.usefixtures("poisoned_memory", "strict_float32")

T, B, I, H, P = 5, 4, 6, 7, 3  # noqa: E741
LENGTHS = torch.tensor([T, 0, 2, T - 1], dtype=torch.int32)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
EACH_STEPS = pytest.mark.parametrize(
    ("reverse", "ragged", "episodes"),
    list(itertools.product((False, True), repeat=3)),
)


def how(impl: str, dtype: str = "f32") -> Any:
    """impl and dtype, to be skipped where the implementation is not there."""
    missing = (
        native.obstacle() if impl == "cpu" else None if find_spec("triton") else "the kernels are written in Triton"
    )
    return pytest.param(
        impl, DTYPES[dtype], id=f"{impl}-{dtype}", marks=pytest.mark.skipif(bool(missing), reason=str(missing))
    )


HOWS = [how("cpu"), *(how(impl, dtype) for impl in ("triton", "triton-step") for dtype in DTYPES)]
EACH = pytest.mark.parametrize(("impl", "dtype"), HOWS)
KINDS = ("dense", "packed", "packed ids")
# Triton's with a state and without one in turn.
LAYERS = [
    pytest.param(kind, given, *each.values, id=f"{kind}-{'state' if given else 'no state'}-{each.id}", marks=each.marks)
    for (i, kind), (j, each) in itertools.product(enumerate(KINDS), enumerate(HOWS))
    for given in ((True, False) if j == 0 else (bool((i + j) % 2),))
]


def some_steps(reverse: bool, ragged: bool, episodes: bool) -> Steps:
    resets = torch.rand(T, B) < 0.3
    resets[0, 0], resets[T - 1, 3], resets[1, 2] = True, True, True
    return Steps(reverse, LENGTHS if ragged else None, resets if episodes else None)


def parameters(scale: float = 1.0) -> list[Tensor]:
    """w_ih, w_hh, b_ih, b_hh and w_hr in float64, of the size that torch's init gives."""
    k = scale * H**-0.5
    sizes = ((4 * H, I), (4 * H, P), (4 * H,), (4 * H,), (P, H))
    return [torch.empty(size, dtype=torch.float64).uniform_(-k, k) for size in sizes]


# The algebra.


def folded(
    steps: Steps, x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor, b_hh: Tensor, w_hr: Tensor
) -> tuple[Tensor, ...]:
    """By `fold`, plain steps, and `unfold`."""
    x_proj, start, plain = projection.fold(x.clone(), (h0, c0), RecurrentWeights(w_hh, b_hh, w_hr), steps)
    assert plain.w_hr is None
    out, last = unroll(LSTM, x_proj, start, plain, steps)
    out, last = projection.unfold(out, last, h0, RecurrentWeights(w_hh, b_hh, w_hr), steps)
    return out, *last


def projected(steps: Steps, x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """By steps with the projection."""
    out, last = unroll(LSTM, x, (h0, c0), RecurrentWeights(*weights), steps)
    return out, *last


def some_inputs() -> list[Tensor]:
    _, w_hh, _, b_hh, w_hr = parameters()
    state = [torch.randn(T, B, 4 * H), torch.randn(B, P), torch.randn(B, H)]
    return [t.double().requires_grad_() for t in (*state, w_hh, b_hh, w_hr)]


def derivatives(run: Callable[..., tuple[Tensor, ...]], steps: Steps, given: list[Tensor]) -> list[Tensor]:
    """Results, gradients, and gradients of the gradients."""
    out = run(steps, *given)
    torch.manual_seed(0)
    first = torch.autograd.grad(out, given, cotangents(out), create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(first, given, cotangents(first), materialize_grads=True)
    return [*out, *first, *second]


@EACH_STEPS
def test_the_algebra(reverse: bool, ragged: bool, episodes: bool) -> None:
    steps, given = some_steps(reverse, ragged, episodes), some_inputs()
    assert_equal_to_rounding(derivatives(folded, steps, given), derivatives(projected, steps, given))


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "the first step is the first of the tensor": (projection, "_first_step", lambda T, steps: 0),
    "no initial state": (projection, "linear", lambda h, w: nn.functional.linear(0 * h if len(w) == 4 * H else h, w)),
    "an empty row has h_n of its steps": (
        projection,
        "unfold",
        lambda out, last, h0, w, steps: (out @ w.w_hr.t(), (last[0] @ w.w_hr.t(), last[1])),
    ),
    "a reset keeps the initial state": (
        projection,
        "fold",
        lambda x, s, w, steps, fold=projection.fold: fold(x, s, w, steps._replace(resets=None)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_algebra_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, given = some_steps(True, True, True), some_inputs()
    expected = projected(steps, *given)
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        assert_equal_to_rounding(folded(steps, *given), expected)


# Backends.


def run_function(args: list[Tensor], dtype: torch.dtype, d: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients of `functional.lstm`."""
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr = (
        a.to(dtype, copy=True).requires_grad_() if a.is_floating_point() else a for a in args
    )
    out = functional.lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr=w_hr, **options)
    wanted = [t for t in (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr) if t.requires_grad]
    return [*out, *torch.autograd.grad(out, wanted, [c.to(dtype) for c in d])]


def assert_as_accurate(exact: list[Tensor], theirs: list[Tensor], ours: list[Tensor]) -> None:
    for i, (truth, base, mine) in enumerate(zip(exact, theirs, ours, strict=True)):
        assert mine.dtype == base.dtype and mine.shape == base.shape
        limit = 2 * rms_error(base, truth) + torch.finfo(base.dtype).eps
        assert rms_error(mine, truth) <= limit, f"tensor {i} of shape {list(base.shape)}"


@EACH
@EACH_STEPS
@pytest.mark.slow
def test_functional(impl: str, dtype: torch.dtype, reverse: bool, ragged: bool, episodes: bool) -> None:
    """Ids and dense in turn, against torch's operators."""
    _, lengths, resets, *_ = some_steps(reverse, ragged, episodes)
    x = torch.randint(I, (T, B)) if reverse != ragged else torch.randn(T, B, I)
    args = [x, torch.randn(B, P), torch.randn(B, H), *parameters()]
    args = [a.to(dtype).double() if a.is_floating_point() else a for a in args]
    d = [torch.randn(size).to(dtype).double() for size in ((T, B, P), (B, P), (B, H))]
    options: dict[str, Any] = {"lengths": lengths, "resets": resets, "reverse": reverse}
    exact, theirs = (run_function(args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    ours = run_function(args, dtype, d, impl=impl, **options)
    assert_as_accurate(exact, theirs, ours)
    if ragged:
        assert torch.equal(ours[1][1], args[1][1].to(dtype)), "h_n of an empty row is its h0"
        assert not ours[0][2:, 2].any() and not ours[0][:, 1].any(), "zero past a row's length"


def run_layer(layer: nn.LSTM | fastcells.LSTM, x: Any, hx: Any, d: list[Tensor]) -> list[Tensor]:
    """Outputs and the gradients of the parameters and of a dense input."""
    to = layer.weight_hh_l0.dtype
    out, last = layer(x, hx)
    flat = [out.data if isinstance(out, PackedSequence) else out, *last]
    d = [c.to(to) for c in d]
    wanted = [*layer.parameters(), *([x] if isinstance(x, Tensor) and x.requires_grad else [])]
    return [*flat, *torch.autograd.grad(flat, wanted, d)]


def inputs_of(kind: str, dtype: torch.dtype) -> Iterator[Any]:
    """The same input in float64 and in the dtype for torch.nn, and in the dtype for ours."""
    lengths = (3, 5, 1, 4)
    dense = [torch.randn(n, I).to(dtype) for n in lengths]
    ids = [torch.randint(I, (n,)) for n in lengths]
    for to in (torch.float64, dtype, None):
        if kind == "dense":
            yield torch.stack([row[:1].expand(T, I) for row in dense], 1).to(to or dtype).requires_grad_()
        elif kind == "packed":
            yield pack_sequence([row.to(to or dtype) for row in dense], enforce_sorted=False)
        elif to is None:
            yield pack_sequence(ids, enforce_sorted=False)
        else:
            yield pack_sequence([nn.functional.one_hot(row, I).to(to) for row in ids], enforce_sorted=False)


@pytest.mark.parametrize(("kind", "given", "impl", "dtype"), LAYERS)
@pytest.mark.slow
def test_layers(kind: str, given: bool, impl: str, dtype: torch.dtype) -> None:
    """Two bidirectional layers against torch.nn's."""
    sizes = {"proj_size": P, "num_layers": 2, "bidirectional": True}
    exact, theirs = nn.LSTM(I, H, **sizes), nn.LSTM(I, H, **sizes).to(dtype)
    ours = fastcells.LSTM(I, H, **sizes, impl=impl).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    exact.load_state_dict(theirs.state_dict())
    exact.double()
    state = [torch.randn(4, B, P).to(dtype), torch.randn(4, B, H).to(dtype)]
    results = []
    for layer, x in zip((exact, theirs, ours), inputs_of(kind, dtype), strict=True):
        hx = tuple(s.to(layer.weight_hh_l0.dtype) for s in state) if given else None
        torch.manual_seed(1)
        tokens = (13,) if isinstance(x, PackedSequence) else (T, B)
        d = [torch.randn(size).to(dtype) for size in ((*tokens, 2 * P), (4, B, P), (4, B, H))]
        results.append(run_layer(layer, x, hx, d))
        assert layer is not ours or fastcells.explain(ours, x).impl == impl
    assert_as_accurate(*results)


@pytest.mark.parametrize(("impl", "dtype"), [how("triton"), how("triton-step")])
def test_autocast(impl: str, dtype: torch.dtype) -> None:
    """As a layer in the lower precision."""
    layer = fastcells.LSTM(I, H, proj_size=P, impl=impl)
    low = fastcells.LSTM(I, H, proj_size=P, impl=impl, dtype=torch.bfloat16)
    low.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out, (h_n, c_n) = layer(x)
    expected, last = low(x.bfloat16())
    assert out.dtype == h_n.dtype == c_n.dtype == torch.bfloat16
    assert all(map(torch.equal, (out, h_n, c_n), (expected, *last)))


@pytest.mark.parametrize(("impl", "dtype"), [how("cpu"), how("triton")])
def test_second_derivatives_and_what_is_the_callers(impl: str, dtype: torch.dtype) -> None:
    """As torch's operators give them; outputs may be changed in place before the backward."""
    args = [torch.randn(T, B, I), torch.randn(B, P), torch.randn(B, H), *parameters()]
    results = []
    for how in (impl, "torch"):
        x, h0, c0, *weights, w_hr = (a.to(dtype, copy=True).requires_grad_() for a in args)
        leaves = [x, h0, c0, *weights, w_hr]
        out = functional.lstm(x, h0, c0, *weights, w_hr=w_hr, impl=how)
        torch.manual_seed(0)
        d = cotangents(out)
        first = torch.autograd.grad(out, leaves, d, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves)
        outs = functional.lstm(x, h0, c0, *weights, w_hr=w_hr, impl=how)
        for o in outs:
            o.mul_(2.0)
        results.append([*first, *second, *(g / 2 for g in torch.autograd.grad(outs, leaves, d))])
    for a, b in zip(*results, strict=True):
        # A second pass through float32 steps; 1e-4 is far from a missing term.
        assert error(a, b) <= 1e-4 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize(("impl", "dtype"), [how("cpu"), how("triton")])
def test_explain_says_what_it_costs(impl: str, dtype: torch.dtype) -> None:
    layer = fastcells.LSTM(I, 40, proj_size=8, impl=impl, dtype=dtype)
    reason = fastcells.explain(layer, torch.zeros(T, B, I)).reason
    assert reason.endswith("W_hh W_hr as one matrix has 4.2 times the multiplications of a projected step")
    assert "projected" not in fastcells.explain(fastcells.LSTM(I, 40, impl=impl), torch.zeros(T, B, I)).reason
    assert (
        "projected"
        not in fastcells.explain(fastcells.LSTM(I, 40, proj_size=8, impl="torch"), torch.zeros(T, B, I)).reason
    )


@pytest.mark.parametrize(("impl", "dtype"), [how("cpu"), how("triton")])
def test_compile(impl: str, dtype: torch.dtype) -> None:
    layer = fastcells.LSTM(I, H, proj_size=P, impl=impl, dtype=dtype)
    x = torch.randn(T, B, I, requires_grad=True)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        out, last = run(x)
        torch.manual_seed(0)
        wanted = [x, *layer.parameters()]
        results.append([out, *last, *torch.autograd.grad((out, *last), wanted, cotangents((out, *last)))])
    assert_equal_to_rounding(*results)
