"""What a module shows of itself, and what is hooked onto, wrapped around or done with it in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from tests.support.idiom_cases import Given, plan_of
from tests.support.idiom_outcomes import call, check, trained, weigh


def _names(module: Any, given: Given) -> Any:
    """Order, prefixes, and what a module shows of itself. (its class and implementation are ours)"""
    text = repr(module).replace(f", impl={given.subject.impl!r}", "").replace(", reset_after=False", "")
    lists = [[n for n, _ in module.named_parameters(prefix="a")], list(module.state_dict(prefix="b."))]
    lists += [[n for n, _ in module.named_buffers()], [n for n, _ in module.named_modules()]]
    if not given.subject.cell:
        lists += [module._flat_weights_names, module._all_weights]
    return text.replace("ResetBefore", "GRU"), lists


def _weights_listed(module: Any, given: Given) -> Any:
    if given.subject.cell:
        return None
    flat = {id(w) for group in module.all_weights for w in group} | {id(w) for w in module._flat_weights}
    return [w for group in module.all_weights for w in group], len(flat), flat == {id(p) for p in module.parameters()}


def _attributes(module: Any, given: Given) -> Any:
    return {
        k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and k not in ("impl", "reset_after")
    }


def _hooks(module: Any, given: Given) -> Any:
    seen: dict[str, Any] = {}
    module.register_forward_pre_hook(lambda m, args, kwargs: (args, {**kwargs, "hx": None}), with_kwargs=True)
    module.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(keys=sorted(kwargs), number=len(args)), with_kwargs=True
    )
    results = module(given.x, hx=given.hx)
    return seen, [t for t in tree_leaves(results) if isinstance(t, torch.Tensor)]


def _hook_replaces(module: Any, given: Given) -> Any:
    module.register_forward_hook(lambda m, args, out: (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2)
    return trained(module, given) if not isinstance(given.x, PackedSequence) else None


def _backward_hooks(module: Any, given: Given) -> Any:
    seen: list[Any] = []
    module.register_full_backward_pre_hook(lambda m, g: seen.append([None if t is None else t.clone() for t in g]))
    module.register_full_backward_hook(lambda m, gi, go: seen.append([None if t is None else t.clone() for t in go]))
    return trained(module, given), seen


def _functional_call(module: Any, given: Given) -> Any:
    weights = {k: (2 * p.detach()).requires_grad_() for k, p in module.named_parameters()}
    results = functional_call(module, weights, (given.x, given.hx))
    tensors = [t for t in tree_leaves(results) if isinstance(t, torch.Tensor)]
    return tensors, [g.clone() for g in torch.autograd.grad(weigh(tensors), list(weights.values()))]


def _func_grad(module: Any, given: Given) -> Any:
    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        results = functional_call(module, weights, (given.x, given.hx))
        return weigh(tree_leaves(results))

    with torch.backends.mkldnn.flags(enabled=False):
        found = torch.func.grad(loss)({k: p.detach() for k, p in module.named_parameters()})
    return {k: g.clone() for k, g in found.items()}


def _maml(module: Any, given: Given) -> Any:
    """One inner step, kept in the graph; the outer loss is differentiated through it."""
    with torch.backends.mkldnn.flags(enabled=False):
        names, weights = zip(*module.named_parameters(), strict=True)
        inner = torch.autograd.grad(weigh(call(module, given)), weights, create_graph=True)
        moved = {n: w - 0.01 * g for n, w, g in zip(names, weights, inner, strict=True)}
        results = functional_call(module, moved, (given.x, given.hx))
        weigh(t for t in tree_leaves(results) if isinstance(t, torch.Tensor)).backward()
    return [p.grad for p in weights]


def _steps(module: Any, given: Given) -> Any:
    """Adam, gradients clipped over a generator, weights averaged."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    averaged = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        weigh(call(module, given)).backward()
        norms.append(nn.utils.clip_grad_norm_((p for p in module.parameters()), 1.0).clone())
        optimizer.step()
        averaged.update_parameters(module)
    return norms, call(averaged, given)


def _sequential(module: Any, given: Given) -> Any:
    model = nn.Sequential(nn.Identity(), module)
    listed = nn.ModuleList([module, nn.ModuleDict({"a": module})])
    return [n for n, _ in model.named_parameters()], [n for n, _ in listed.named_parameters()], [
        t for t in tree_leaves(model(given.x)) if isinstance(t, torch.Tensor)]  # fmt: skip


IDIOMS = {f.__name__.strip("_"): f for f in (
    _names, _weights_listed, _attributes, _hooks, _hook_replaces, _backward_hooks, _functional_call, _func_grad,
    _maml, _steps, _sequential,
)}  # fmt: skip


@plan_of(IDIOMS, ("hooks", "functional_call"))
def test_training(subject: Any, idiom: str) -> None:
    if idiom == "func_grad" and subject.impl not in ("auto", "torch"):
        pytest.skip("an implementation that is named refuses torch.func: test_cpu_layers")
    check(IDIOMS[idiom], subject)
