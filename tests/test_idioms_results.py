"""What callers do with the outputs and final states of a layer or cell, as torch.nn's allow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from idiom_cases import Given, plan_of
from idiom_outcomes import Raised, assert_same, call, check, grads, outcome, weigh
from torch import Tensor, nn


def _every_other(t: Tensor) -> Tensor:
    return (torch.arange(t.numel()) % 2 == 0).view(t.shape)


def _set_rows(outs: list[Tensor]) -> None:
    outs[0][1:] = 0


def _set_columns(outs: list[Tensor]) -> None:
    outs[0][..., 1] = outs[0][..., 0].detach()


def _residual(outs: list[Tensor]) -> None:
    outs[0] += torch.ones_like(outs[0])


# Changes of a result in place, between forward and backward.
CHANGES: dict[str, Callable[[list[Tensor]], Any]] = {
    "relu_": lambda outs: torch.relu_(outs[0]),
    "mul_": lambda outs: outs[0].mul_(2),
    "masked_fill_": lambda outs: outs[0].masked_fill_(_every_other(outs[0]), 0),
    "tanh_": lambda outs: outs[0].tanh_(),
    "zero_": lambda outs: outs[0].zero_(),
    "rows": _set_rows,
    "columns": _set_columns,
    "dropout": lambda outs: nn.functional.dropout(outs[0], 0.5, inplace=True),
    "residual": _residual,
    "h_n": lambda outs: outs[-1].mul_(3),
    "all": lambda outs: [t.mul_(2) for t in outs],
    "view": lambda outs: outs[0].view(-1).mul_(2) if outs[0].is_contiguous() else outs[0].mul_(2),
    "transpose_": lambda outs: outs[0].transpose_(0, -1),
    "no_grad": lambda outs: [t.detach().mul_(2) for t in outs],  # detach shares memory: what is saved must not
}


def _changed(change: str, apart: bool) -> Callable[..., Any]:
    """Change, then backward. apart: on clones of the results, which are never what was saved."""

    def idiom(module: nn.Module, given: Given) -> Any:
        outs = [t.clone() if apart else t for t in call(module, given)]
        CHANGES[change](outs)
        weigh(outs).backward()
        return outs, grads(module, given)

    return idiom


@plan_of(CHANGES, ("mul_", "h_n", "rows"), ("relu_", "h_n"))
def test_in_place_then_backward(subject: Any, idiom: str) -> None:
    """Where torch.nn's own recurrence saves its result and raises, ours may raise too, or be right."""
    theirs = outcome(_changed(idiom, False), subject, False)
    ours = outcome(_changed(idiom, False), subject, True)
    lenient = isinstance(theirs, Raised) and not isinstance(ours, Raised)
    assert_same(ours, outcome(_changed(idiom, True), subject, False) if lenient else theirs, views=not lenient)


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


def _flags(module: nn.Module, given: Given) -> Any:
    outs = call(module, given)
    return outs, [t._base is None for t in outs[1:]]


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


def _no_grad_detach(module: nn.Module, given: Given) -> Any:
    with torch.no_grad():
        outs = call(module, given)
    for t in outs:
        t.detach_()
    return outs


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


def _numpy(module: nn.Module, given: Given) -> Any:
    return [torch.from_numpy(t.detach().numpy().copy()) for t in call(module, given)]


RESULTS = {f.__name__.strip("_"): f for f in (
    _detach_states, _detach_all, _detach_then_loss, _requires_grad_state, _flags, _results_apart, _inference,
    _no_grad_detach, _eval, _twice, _tensor_hooks, _numpy,
)}  # fmt: skip


@plan_of(RESULTS, ("detach_all", "results_apart", "twice", "tensor_hooks"), ("detach_all", "results_apart"))
def test_results(subject: Any, idiom: str) -> None:
    check(RESULTS[idiom], subject)


def _carried(between: Callable[[Any], Any]) -> Callable[..., Any]:
    """Two batches, the state of the first carried into the second."""

    def idiom(module: nn.Module, given: Given) -> Any:
        _, state = module(given.x, given.hx)
        state = between(state)
        out, state = module(given.x, state)
        weigh([getattr(out, "data", out)]).backward()
        return state, grads(module, given)

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
    "done_mask": _in_place(lambda s: s.mul_(_every_other(s))),
    "row": _in_place(lambda s: s[..., 0].zero_()),
    "no_grad": _in_place(_no_grad_in_place),
    "data": _in_place(lambda s: s.data.zero_()),
}


@plan_of(BETWEEN, ("kept", "detach_", "row"))
def test_carried_state(subject: Any, idiom: str) -> None:
    check(_carried(BETWEEN[idiom]), subject)
