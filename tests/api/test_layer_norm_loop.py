"""The hand-written backward of `LayerNormGRU` and `LayerNormLSTM`, against autograd through their plain steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells import one_direction
from fastcells.accuracy import allowed_error, relative_error
from tests.support.accuracy import cotangents

NAMES = ("LayerNormGRU", "LayerNormLSTM")
EACH = pytest.mark.parametrize("name", NAMES)
CALLS = list(itertools.product((False, True), (False, True), (False, True)))
EACH_CALL = pytest.mark.parametrize(
    ("lengths", "resets", "ids"),
    CALLS,
    ids=["-".join(n for n, on in zip(("lengths", "resets", "ids"), c, strict=True) if on) or "plain" for c in CALLS],
)


def layer(name: str, *sizes: int, **options: Any) -> Any:
    built = getattr(fastcells, name)(*sizes, **{"dtype": torch.float64, **options})
    for parameter, p in built.named_parameters():
        if parameter.startswith("norm_"):  # or gains and biases would not be seen
            p.data.add_(torch.randn_like(p) / 4)
    return built


def starts(built: Any, B: int) -> list[Tensor]:
    """Initial states that are no zeros."""
    rows, states = built.num_layers * built._directions, built._spec().num_states
    return [torch.randn(rows, B, built.hidden_size, dtype=built.weight_hh_l0.dtype) for _ in range(states)]


def options(T: int, B: int, lengths: bool, resets: bool) -> dict[str, Any]:
    return {
        **({"lengths": torch.arange(B) % (T + 1)} if lengths else {}),
        **({"resets": torch.rand(T, B) < 0.3} if resets else {}),
    }


def results(built: Any, x: Tensor, state: list[Tensor], **given: Any) -> list[Tensor]:
    out, last = built(x, tuple(state) if len(state) > 1 else state[0], **given)
    return [out, *(last if isinstance(last, tuple) else (last,))]


def through_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_direction, "must_unroll", lambda *_: True)


@EACH_CALL
@EACH
def test_as_the_plain_steps(name: str, lengths: bool, resets: bool, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    T, B, I, H = 7, 9, 4, 5  # noqa: E741
    built = layer(name, I, H, bidirectional=True, num_layers=2)
    x = torch.randint(I, (T, B)) if ids else torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    state = [s.requires_grad_() for s in starts(built, B)]
    given = options(T, B, lengths, resets)
    ours = results(built, x, state, **given)
    d = cotangents(ours)
    leaves = [*([] if ids else [x]), *state, *built.parameters()]
    found = torch.autograd.grad(ours, leaves, d)
    with monkeypatch.context() as patch:
        through_steps(patch)
        theirs = results(built, x, state, **given)
    # torch's own tolerance: where a norm's units hardly differ, it divides by little and makes roundings larger.
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, leaves, d))


@EACH
def test_which_calls_run_by_the_loop(name: str) -> None:
    def node(built: Any, **given: Any) -> str:
        return type(built(torch.randn(3, 2, 4, dtype=torch.float64), **given)[0].grad_fn).__name__

    resets = torch.ones(3, 2, dtype=torch.bool)
    for given in ({}, {"lengths": [3, 1]}, {"resets": resets}, {"lengths": [3, 1], "resets": resets}):
        assert node(layer(name, 4, 6), **given) == "RecurrenceBackward"
    assert node(layer(name, 4, 6, weight_dropout=0.5)) == "RecurrenceBackward"
    for option in ("zoneout", "recurrent_dropout"):
        assert node(layer(name, 4, 6, **{option: 0.5})) == "StackBackward0"
    assert node(layer(name, 4, 6, learned_state=True), resets=resets) == "StackBackward0"


@EACH
def test_derivatives_with_lengths_and_resets(name: str) -> None:
    T, B = 3, 2
    built = layer(name, 2, 2)
    x = torch.randn(T, B, 2, dtype=torch.float64)
    resets = torch.tensor([[False, False], [True, False], [False, True]])
    leaves = [each.requires_grad_() for each in (x, *starts(built, B), *built.parameters())]
    states = built._spec().num_states

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(results(built, x, list(leaves[1 : 1 + states]), lengths=[3, 2], resets=resets))

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("f32", "bf16"))
@EACH
def test_error_beside_autograd_in_the_same_dtype(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    T, B, I, H = 20, 16, 24, 48  # noqa: E741
    exact = layer(name, I, H)
    state = starts(exact, B)
    x, *state = (each.to(dtype) for each in (torch.randn(T, B, I), *state))
    exact.to(dtype).double()  # weights that both have
    d = [torch.randn(shape).to(dtype) for shape in ((T, B, H), *(s.shape for s in state))]

    def run(to: torch.dtype) -> list[Tensor]:
        built = layer(name, I, H, dtype=to)
        built.load_state_dict(exact.state_dict())
        leaves = [each.to(to).requires_grad_() for each in (x, *state)]
        found = results(built, leaves[0], leaves[1:], resets=torch.arange(T).unsqueeze(1) % 7 == torch.arange(B) % 9)
        return [*found, *torch.autograd.grad(found, [*leaves, *built.parameters()], [each.to(to) for each in d])]

    ours = run(dtype)
    through_steps(monkeypatch)
    truth, baseline = run(torch.float64), run(dtype)
    for a, b, t in zip(ours, baseline, truth, strict=True):
        assert a.dtype == dtype
        allowed = allowed_error(relative_error(b, t), exact._spec().name, dtype, a.device, roundings=4)
        assert relative_error(a, t) <= allowed


@EACH
def test_padding_and_no_rows(name: str) -> None:
    built = layer(name, 3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    x[2:, 0] = float("nan")
    out, _ = built(x, lengths=[2, 5])
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in built.parameters())
    out, _ = built(x[:, :0].requires_grad_())
    out.sum().backward()
    assert out.shape == (5, 0, 4)


@EACH
def test_results_are_the_callers_and_gradients_may_be_few(name: str) -> None:
    built = layer(name, 3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    built.norm_hh_weight_l0.requires_grad_(False)
    state = starts(built, 2)
    expected, ours = results(built, x, state), results(built, x, state)
    for only in range(len(ours)):
        wanted = [p for p in built.parameters() if p.requires_grad]
        each = [torch.autograd.grad(r[only].sum(), wanted, retain_graph=True) for r in (ours, expected)]
        if only == 0:
            ours[0].detach().mul_(3)  # what backward reads is not what the caller has
        torch.testing.assert_close(*each)
    (ours[0].sum() + ours[1].sum()).backward()
    assert built.norm_hh_weight_l0.grad is None and built.norm_hh_bias_l0.grad is not None
