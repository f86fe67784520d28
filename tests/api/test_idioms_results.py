"""What callers do with the outputs and final states of a layer or cell, as torch.nn's allow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.support.idiom_cases import Given, plan_of
from tests.support.idiom_outcomes import Raised, assert_same, call, check, grads, outcome, weigh


def _every_other(t: Tensor) -> Tensor:
    return (torch.arange(t.numel()) % 2 == 0).view(t.shape)


def _set_rows(outs: list[Tensor]) -> None:
    outs[0][1:] = 0


def _residual(outs: list[Tensor]) -> None:
    outs[0] += torch.ones_like(outs[0])


# Changes of a result in place, between forward and backward.
CHANGES: dict[str, Callable[[list[Tensor]], Any]] = {
    "relu_": lambda outs: torch.relu_(outs[0]),
    "mul_": lambda outs: outs[0].mul_(2),
    "masked_fill_": lambda outs: outs[0].masked_fill_(_every_other(outs[0]), 0),
    "tanh_": lambda outs: outs[0].tanh_(),
    "rows": _set_rows,
    "dropout": lambda outs: nn.functional.dropout(outs[0], 0.5, inplace=True),
    "residual": _residual,
    "h_n": lambda outs: outs[-1].mul_(3),
    "all": lambda outs: [t.mul_(2) for t in outs],
    "no_grad": lambda outs: [t.detach().mul_(2) for t in outs],  # detach shares memory: what is saved must not
}


def assert_as_lenient(idiom: Callable[[bool], Any], subject: Any) -> None:
    """Where torch.nn's own recurrence saves its result and raises, ours may raise too, or be right.

    idiom(apart=True) is what happens to clones of the results, which are never what was saved.
    """
    theirs, ours = outcome(idiom(False), subject, False), outcome(idiom(False), subject, True)
    lenient = isinstance(theirs, Raised) and not isinstance(ours, Raised)
    assert_same(ours, outcome(idiom(True), subject, False) if lenient else theirs, views=not lenient)


def _changed(change: str, apart: bool) -> Callable[..., Any]:
    """Change, then backward."""

    def idiom(module: nn.Module, given: Given) -> Any:
        outs = [t.clone() if apart else t for t in call(module, given)]
        CHANGES[change](outs)
        weigh(outs).backward()
        return outs, grads(module, given)

    return idiom


@plan_of(CHANGES, ("mul_", "h_n"), ("all",))
@pytest.mark.slow
def test_in_place_then_backward(subject: Any, idiom: str) -> None:
    assert_as_lenient(lambda apart: _changed(idiom, apart), subject)


def _detach_states(module: nn.Module, given: Given) -> Any:
    outs = call(module, given)
    for t in outs[1:]:
        t.detach_()
    return outs


def _detach_all(module: nn.Module, given: Given) -> Any:
    outs = call(module, given)
    for t in outs:
        t.detach_()
    return outs


def _detach_then_loss(module: nn.Module, given: Given) -> Any:
    """Truncated backpropagation: the state is cut off after the forward, the outputs are trained on."""
    outs = call(module, given)
    if len(outs) > 1:
        outs[-1].detach_()
        weigh(outs[:1]).backward()
    return outs, grads(module, given)


def _requires_grad_state(module: nn.Module, given: Given) -> Any:
    """A new leaf from a state: `state.detach_().requires_grad_()`."""
    outs = call(module, given)
    return outs[-1].detach_().requires_grad_(), outs


def _results_apart(module: nn.Module, given: Given) -> Any:
    """No two results share memory: writing to one leaves the others."""
    with torch.no_grad():
        outs = call(module, given)
        outs[-1].fill_(5)
        return outs


def _inference(module: nn.Module, given: Given) -> Any:
    with torch.inference_mode():
        outs = call(module, given)
        outs[0].mul_(2)
    return [t.clone() for t in outs], [t.is_inference() for t in outs]


def _eval(module: nn.Module, given: Given) -> Any:
    outs = call(module.eval(), given)
    weigh(outs).backward()
    return outs, grads(module, given)


def _twice(module: nn.Module, given: Given) -> Any:
    """The results of the first call stay when the module runs again, and both can be trained on."""
    first = call(module, given)
    kept = [t.detach().clone() for t in first]
    second = call(module, given)
    weigh([*first, *second]).backward()
    return kept, first, second, grads(module, given)


def _tensor_hooks(module: nn.Module, given: Given) -> Any:
    outs, seen = call(module, given), {}
    hooked = outs[:1] if given.subject.cell else outs  # in torch's LSTMCell h' depends on c', in one operator it cannot
    for i, t in enumerate(hooked):
        t.register_hook(lambda g, i=i: (seen.update({i: g.clone()}), 2 * g)[1])
        t.retain_grad()
    weigh(outs).backward()
    return [seen[i] for i in range(len(hooked))], [t.grad for t in hooked], grads(module, given)


RESULTS = {f.__name__.strip("_"): f for f in (
    _detach_states, _detach_all, _detach_then_loss, _requires_grad_state, _results_apart, _inference,
    _eval, _twice, _tensor_hooks,
)}  # fmt: skip


@plan_of(RESULTS, ("detach_all", "results_apart", "tensor_hooks"), ("detach_all",))
def test_results(subject: Any, idiom: str) -> None:
    check(RESULTS[idiom], subject)


def _carried(between: Callable[[Any], Any], apart: bool = False) -> Callable[..., Any]:
    """Two batches, the state of the first carried into the second."""

    def idiom(module: nn.Module, given: Given) -> Any:
        results = module(given.x, given.hx)
        state = results if given.subject.cell else results[1]
        state = between(tree_map(torch.clone, state) if apart else state)
        outs = call(module, given, hx=state)
        weigh(outs[:1]).backward()
        return outs, grads(module, given)

    return idiom


def _in_place(change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    def between(state: Any) -> Any:
        for s in state if isinstance(state, tuple) else (state,):
            change(s)
        return state

    return between


def _no_grad_in_place(s: Tensor) -> None:
    with torch.no_grad():
        s[..., 0] = 0


BETWEEN: dict[str, Callable[[Any], Any]] = {
    "kept": lambda state: state,
    "detach_": _in_place(Tensor.detach_),
    "row": _in_place(lambda s: s[..., 0].zero_()),
    "no_grad": _in_place(_no_grad_in_place),
}


@plan_of(BETWEEN, ("detach_", "row"))
def test_carried_state(subject: Any, idiom: str) -> None:
    assert_as_lenient(lambda apart: _carried(BETWEEN[idiom], apart), subject)
