"""Which gradients are asked for, how often: as torch.nn gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.support.idiom_cases import ALL, CORE, Given, has, plan_of
from tests.support.idiom_outcomes import call, check, grads, weigh


def _freeze(choose: Callable[[str], bool]) -> Callable[..., Any]:
    """Train what `choose` names, of parameters and leaves; the rest is frozen."""

    def idiom(module: nn.Module, given: Given) -> Any:
        for name, p in [*module.named_parameters(), *given.leaves.items()]:
            p.requires_grad_(choose(name))
        outs = call(module, given)
        if any(t.requires_grad for t in outs):
            weigh(outs).backward()
        return outs, grads(module, given)

    return idiom


FREEZE: dict[str, Callable[[str], bool]] = {
    **{f"only-{n}": (lambda name, n=n: name == n or name == f"{n}_l0") for n in (
        "x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")},
    **{f"without-{n}": (lambda name, n=n: name not in (n, f"{n}_l0")) for n in ("x", "h0", "weight_hh")},
    "weights-frozen": lambda name: name in ("x", "h0", "c0"),
    "inputs-frozen": lambda name: name not in ("x", "h0", "c0"),
    "all-frozen": lambda name: False,
}  # fmt: skip


@pytest.mark.parametrize(("subject", "what"), [
    pytest.param(s, f, id=f"{s}-{f}") for s in ALL for f in FREEZE if has(s, f)
    if s in CORE or f in ("only-h0", "inputs-frozen")
])  # fmt: skip
def test_freeze(subject: Any, what: str) -> None:
    check(_freeze(FREEZE[what]), subject)


def _retain_graph(module: nn.Module, given: Given) -> Any:
    loss = weigh(call(module, given))
    loss.backward(retain_graph=True)
    once = {k: None if g is None else g.clone() for k, g in grads(module, given).items()}
    loss.backward()
    return once, grads(module, given)


def _create_graph(module: nn.Module, given: Given) -> Any:
    """A gradient penalty. oneDNN's LSTM has no second derivative: torch.nn's runs without."""
    with torch.backends.mkldnn.flags(enabled=False):
        outs = call(module, given)
        leaves = [*module.parameters(), *given.leaves.values()]
        first = torch.autograd.grad(weigh(outs), leaves, create_graph=True)
        weigh(g.square() for g in first).backward()
    return [g.detach() for g in first], grads(module, given)


def _allow_unused(module: nn.Module, given: Given) -> Any:
    spare = torch.zeros(3, requires_grad=True)
    found = torch.autograd.grad(weigh(call(module, given)), [*module.parameters(), spare], allow_unused=True)
    return [None if g is None else g.clone() for g in found]  # strides as they are, but no view


def _accumulate(module: nn.Module, given: Given) -> Any:
    for _ in range(3):
        weigh(call(module, given)).backward()
    return grads(module, given)


def _only(part: Callable[[list[Tensor]], list[Tensor]]) -> Callable[..., Any]:
    def idiom(module: nn.Module, given: Given) -> Any:
        weigh(part(call(module, given))).backward()
        return grads(module, given)

    return idiom


def _no_state(module: nn.Module, given: Given) -> Any:
    results = module(given.x)
    flat: list[Tensor] = []
    tree_map(lambda t: flat.append(t) if isinstance(t, Tensor) and t.requires_grad else None, results)
    weigh(flat).backward()
    return grads(module, given)


def _under_no_grad_then_on(module: nn.Module, given: Given) -> Any:
    with torch.no_grad():
        outs = call(module, given)
        with torch.enable_grad():
            weigh(call(module, given)).backward()
    return outs, grads(module, given)


def _inference_state(module: nn.Module, given: Given) -> Any:
    """A state made in inference mode is given to a training step."""
    with torch.inference_mode():
        hx = tree_map(torch.clone, given.hx)
    weigh(call(module, given, hx=hx)).backward()
    return grads(module, given)


def _checkpoint(reentrant: bool) -> Callable[..., Any]:
    def idiom(module: nn.Module, given: Given) -> Any:
        outs = torch.utils.checkpoint.checkpoint(
            lambda hx: tuple(call(module, given, hx=hx)), given.hx, use_reentrant=reentrant
        )
        weigh(outs).backward()
        return outs, grads(module, given)

    return idiom


def _shared_input(module: nn.Module, given: Given) -> Any:
    """The state is part of two uses: h0 also enters the loss by itself."""
    hs = given.hx if isinstance(given.hx, tuple) else (given.hx,)
    weigh([*call(module, given), *(h * h for h in hs)]).backward()
    return grads(module, given)


GRADIENTS = {
    "retain_graph": _retain_graph, "create_graph": _create_graph,
    "allow_unused": _allow_unused, "accumulate": _accumulate,
    "only_last": _only(lambda outs: outs[-1:]),
    "only_a_slice": _only(lambda outs: [outs[0][:1]]), "only_last_step": _only(lambda outs: [outs[0][-1]]),
    "no_state": _no_state, "no_grad_then_on": _under_no_grad_then_on,
    "inference_state": _inference_state, "checkpoint": _checkpoint(False), "checkpoint-reentrant": _checkpoint(True),
    "shared_input": _shared_input,
}  # fmt: skip


@plan_of(GRADIENTS, ("only_last", "no_state"), ("only_last",))
def test_gradients(subject: Any, idiom: str) -> None:
    check(GRADIENTS[idiom], subject)
