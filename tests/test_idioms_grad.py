"""Which gradients are asked for, how often, and what is overwritten before they are: as torch.nn gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from idiom_cases import ALL, CELLS, IMPLS, TRITON, Given, Raised, assert_same, call, check, each, grads, outcome, weigh
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from fastcells import functional

MODULES = [*ALL, *CELLS]
# Which gradients are wanted matters to an implementation; to a layout above it only now and then.
CORE = [s for s in MODULES if s in IMPLS or s.cell or s.layout == "ids" or not s.options.get("bias", True)]


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
    **{f"without-{n}": (lambda name, n=n: name != n and name != f"{n}_l0") for n in (
        "x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")},
    "weights-frozen": lambda name: name in ("x", "h0", "c0"),
    "inputs-frozen": lambda name: name not in ("x", "h0", "c0"),
    "all-frozen": lambda name: False,
}  # fmt: skip


def _has(subject: Any, name: str) -> bool:
    part = name.removeprefix("only-").removeprefix("without-")
    if part in ("c0", "weight_hr"):
        return subject.kind.startswith("LSTM") if part == "c0" else subject.kind == "LSTM-proj"
    return not (
        (part == "x" and "ids" in subject.layout) or (part.startswith("bias") and not subject.options.get("bias", True))
    )


@pytest.mark.parametrize(("subject", "what"), [
    pytest.param(s, f, id=f"{s}-{f}") for s in MODULES for f in FREEZE if _has(s, f)
    if s in CORE or f in ("only-x", "only-h0", "inputs-frozen", "all-frozen")
])  # fmt: skip
def test_freeze(subject: Any, what: str) -> None:
    # Some of torch's one-operator recurrences (oneDNN's LSTM) give a frozen input no gradient either: the same.
    check(_freeze(FREEZE[what]), subject)


def _retain_graph(module: nn.Module, given: Given) -> Any:
    loss = weigh(call(module, given))
    loss.backward(retain_graph=True)
    once = {k: None if g is None else g.clone() for k, g in grads(module, given).items()}
    loss.backward()
    return once, grads(module, given)


def _twice_without_retain(module: nn.Module, given: Given) -> Any:
    loss = weigh(call(module, given))
    loss.backward()
    loss.backward()


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
    return torch.autograd.grad(weigh(call(module, given)), [*module.parameters(), spare], allow_unused=True)


def _unused_not_allowed(module: nn.Module, given: Given) -> Any:
    spare = torch.zeros(3, requires_grad=True)
    return torch.autograd.grad(weigh(call(module, given)), [*module.parameters(), spare])


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


def _weight_decay(module: nn.Module, given: Given) -> Any:
    (weigh(call(module, given)) + sum(p.square().sum() for p in module.parameters())).backward()
    return grads(module, given)


GRADIENTS = {
    "retain_graph": _retain_graph, "twice_without_retain": _twice_without_retain, "create_graph": _create_graph,
    "allow_unused": _allow_unused, "unused_not_allowed": _unused_not_allowed, "accumulate": _accumulate,
    "only_last": _only(lambda outs: outs[-1:]), "only_first": _only(lambda outs: outs[:1]),
    "only_a_slice": _only(lambda outs: [outs[0][:1]]), "only_last_step": _only(lambda outs: [outs[0][-1]]),
    "sum": _only(lambda outs: [outs[0].sum()]), "no_state": _no_state, "no_grad_then_on": _under_no_grad_then_on,
    "inference_state": _inference_state, "checkpoint": _checkpoint(False), "checkpoint-reentrant": _checkpoint(True),
    "shared_input": _shared_input, "weight_decay": _weight_decay,
}  # fmt: skip


@pytest.mark.parametrize("idiom", GRADIENTS)
@each([s for s in CORE if s.impl != "triton-step"])
def test_gradients(subject: Any, idiom: str) -> None:
    check(GRADIENTS[idiom], subject)


@pytest.mark.parametrize("idiom", ["only_last", "no_state"])
@each(s for s in TRITON if s.kind in ("GRU", "LSTM"))
def test_gradients_of_triton(subject: Any, idiom: str) -> None:
    check(GRADIENTS[idiom], subject)


# -- overwritten between forward and backward -------------------------------------------------------------------------


def _overwritten(name: str, really: bool) -> Callable[..., Any]:
    """`name`, of the inputs or parameters, changes in place before backward."""

    def idiom(module: nn.Module, given: Given) -> Any:
        x = given.x
        x = x._replace(data=x.data.detach().clone()) if isinstance(x, PackedSequence) else x.detach().clone()
        hx = tree_map(lambda h: h.detach().clone(), given.hx)
        states = hx if isinstance(hx, tuple) else (hx,)
        parameters = dict(module.named_parameters())
        outs = call(module, given, x, hx)
        targets = {
            "x": getattr(x, "data", x) if isinstance(x, PackedSequence) else x,
            "h0": states[0],
            "c0": states[-1],
        }
        with torch.no_grad():
            if really:
                target = targets.get(name)
                (parameters.get(name, parameters.get(f"{name}_l0")) if target is None else target).zero_()
        weigh(outs).backward()
        return grads(module, given)

    return idiom


@pytest.mark.parametrize(("subject", "name"), [
    pytest.param(s, n, id=f"{s}-{n}") for s in MODULES
    for n in ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_hh") if _has(s, n)
] + [pytest.param(s, n, id=f"{s}-{n}") for s in TRITON if s.kind in ("GRU", "LSTM") for n in ("x", "h0", "weight_hh")])  # fmt: skip
def test_overwritten_before_backward(subject: Any, name: str) -> None:
    """Never a wrong gradient: an error as torch.nn's, or what it would have been."""
    theirs = outcome(_overwritten(name, True), subject, False)
    right = outcome(_overwritten(name, False), subject, False)
    ours = outcome(_overwritten(name, True), subject, True)
    if isinstance(
        ours, Raised
    ):  # also for what torch.nn can do without: the bias, which only a second derivative needs
        assert isinstance(ours.error, RuntimeError), repr(ours)
    else:
        assert_same(ours, right)
        assert not isinstance(theirs, Raised) or name != "weight_hh", f"torch.nn raises {theirs!r}"


@pytest.mark.parametrize("what", ["lengths", "resets", "ids", "h0"])
@pytest.mark.parametrize("impl", ["auto", "torch", "cpu"])
@pytest.mark.parametrize("form", ["rnn", "gru", "gru-before", "lstm"])
def test_overwritten_options(form: str, impl: str, what: str) -> None:
    T, B, I, H = 6, 3, 5, 4  # noqa: E741
    form, _, before = form.partition("-")
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[form]
    states = 2 if form == "lstm" else 1
    weights = [torch.randn(s).requires_grad_() for s in ((gates * H, I), (gates * H, H), (gates * H,), (gates * H,))]
    options: dict[str, Any] = {"reset_after": False} if before else {}

    def run(overwrite: bool) -> Any:
        torch.manual_seed(3)
        values = {"ids": torch.randint(I, (T, B)), "h0": torch.randn(B, H)}
        values["lengths"], values["resets"] = torch.tensor([6, 2, 4]), torch.rand(T, B) < 0.4
        state = [values["h0"]] + [torch.randn(B, H)] * (states - 1)
        asked = {k: values[k] for k in ("lengths", "resets") if k == what}
        outs = getattr(functional, form)(values["ids"], *state, *weights, **options, **asked, impl=impl)
        if overwrite:
            values[what].zero_()
        try:
            return torch.autograd.grad(weigh(outs), weights)
        except RuntimeError as error:
            return Raised(error)

    right, got = run(False), run(True)
    if not isinstance(got, Raised):
        assert_same(got, right)


def test_overwritten_weight_raises() -> None:
    """Negative control: the check above accepts an error, so one subject must show that torch.nn has it."""
    assert isinstance(outcome(_overwritten("weight_hh", True), IMPLS[0], False), Raised)
