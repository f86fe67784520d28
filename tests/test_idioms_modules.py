"""What callers do with a recurrent module itself: copy, save, move, prune, parametrize, hook, average, train."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from idiom_cases import CELLS, DENSE, IMPLS, THREE, Given, ResetBefore, above, call, check, each, grads, weigh
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence

import fastcells

LAYERS = [
    *IMPLS,
    *(above(kind, "ids") for kind in THREE),
    *(above(k, DENSE, num_layers=2, bidirectional=True) for k in THREE),
]
MODULES = [*LAYERS, *(s for s in CELLS if s.impl != "triton-step" and "unbatched" not in s.layout)]


OF_TORCH = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell, ResetBefore)


def _trained(module: nn.Module, given: Given) -> Any:
    outs = call(module, given)
    weigh(outs).backward()
    return outs, grads(module, given)


def _after(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The module is changed (or replaced by what the change returns), then trained on."""

    def idiom(module: nn.Module, given: Given) -> Any:
        changed = change(module)
        return _trained(module if changed is None else changed, given)

    return idiom


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _state_dict_both_ways(module: Any) -> None:
    other = {**vars(nn), "ResetBefore": nn.GRU}[type(module).__name__](
        module.input_size, module.hidden_size, **{k: getattr(module, k) for k in ("proj_size",) if getattr(module, k, 0)},
        **{k: getattr(module, k) for k in ("num_layers", "bidirectional", "bias") if hasattr(module, k)})  # fmt: skip
    other.load_state_dict(module.state_dict(), strict=True)
    for p in module.parameters():
        nn.init.constant_(p, 9)
    module.load_state_dict(other.state_dict(), strict=True)
    module.load_state_dict(other.state_dict(), strict=True, assign=True)


def _to_empty(module: Any) -> None:
    state = {k: v.clone() for k, v in module.state_dict().items()}
    module.to("meta").to_empty(device="cpu")
    module.load_state_dict(state)


def _weights(module: nn.Module) -> list[str]:
    return [n for n, _ in module.named_parameters() if n.startswith("weight_hh")]


def _parametrized(make: Callable[..., Any]) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for name in _weights(module):
            make(module, name)

    return change


def _spectral_norm(module: Any) -> None:
    """Every look at such a weight in training improves it: torch.nn's cells look once a call, its layers often."""
    _parametrized(parametrizations.spectral_norm)(module)
    module.train(hasattr(module, "num_chunks") or "Cell" in type(module).__name__)


def _old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in _weights(module):
            nn.utils.weight_norm(module, name)


def _replaced_weights(module: Any) -> None:
    for name in _weights(module):
        setattr(module, name, nn.Parameter(2 * getattr(module, name).detach()))


def _swapped(module: Any) -> None:
    for name in _weights(module):
        other = nn.Parameter(2 * getattr(module, name).detach())
        torch.utils.swap_tensors(getattr(module, name), other)


def _moved_by_swapping(module: Any) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _data_set(module: Any) -> None:
    for p in module.parameters():
        p.data = 0.5 * p.data


def _initialised(module: Any) -> None:
    for name, p in module.named_parameters():
        if "bias" in name:
            nn.init.zeros_(p)
        elif "hh" in name:
            nn.init.orthogonal_(p)
        else:
            nn.init.xavier_uniform_(p)


def _tied(module: Any) -> None:
    """Two names, one Parameter."""
    names = [n for n, _ in module.named_parameters() if n.startswith("bias")]
    if names:
        setattr(module, names[1], getattr(module, names[0]))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": _saved,
    "state_dict": _state_dict_both_ways, "to_empty": _to_empty, "share_memory": lambda m: m.share_memory(),
    "double_float": lambda m: m.double().float(), "to": lambda m: m.to("cpu", torch.float64).to(torch.float32),
    "flatten_parameters": lambda m: getattr(m, "flatten_parameters", lambda: None)(),
    "reset_parameters": lambda m: (torch.manual_seed(1), m.reset_parameters(), m)[2],
    "weight_norm": _parametrized(parametrizations.weight_norm), "spectral_norm": _spectral_norm,
    "orthogonal": _parametrized(parametrizations.orthogonal), "old_weight_norm": _old_weight_norm,
    "weight_norm_deepcopy": lambda m: (_parametrized(parametrizations.weight_norm)(m), copy.deepcopy(m))[1],
    "weight_norm_removed": lambda m: [
        (parametrizations.weight_norm(m, n), nn.utils.parametrize.remove_parametrizations(m, n)) for n in _weights(m)][:0] or m,
    "prune": _parametrized(lambda m, n: prune.l1_unstructured(m, n, 0.3)),
    "prune_removed": _parametrized(lambda m, n: prune.remove(prune.l1_unstructured(m, n, 0.3), n)),
        "replaced": _replaced_weights, "swap_tensors": _swapped, "moved_by_swapping": _moved_by_swapping, "data": _data_set,
    "initialised": _initialised, "tied": _tied, "apply": lambda m: m.apply(lambda x: None),
    "zero_grad": lambda m: m.zero_grad(), "requires_grad_": lambda m: m.requires_grad_(False).requires_grad_(True),
    "there_and_back": lambda m: m if isinstance(m, OF_TORCH) else fastcells.convert(fastcells.to_torch(m)),
    "vector": lambda m: nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(m.parameters()) * 2, m.parameters()),
    "bfloat16_float": lambda m: m.bfloat16().float(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@each(MODULES)
def test_changed_then_trained(subject: Any, change: str) -> None:
    check(_after(CHANGES[change]), subject)


def _names(module: Any, given: Given) -> Any:
    """Order, prefixes, and what a module shows of itself. (its class and implementation are ours)"""
    text = repr(module).replace(f", impl={given.subject.impl!r}", "").replace(", reset_after=False", "")
    lists = [[n for n, _ in module.named_parameters(prefix="a")], list(module.state_dict()), [n for n, _ in module.named_buffers()],
             [n for n, _ in module.named_modules()], list(module.state_dict(prefix="b."))]  # fmt: skip
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
    return seen, [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]


def _hook_replaces(module: Any, given: Given) -> Any:
    module.register_forward_hook(lambda m, args, out: (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2)
    return _trained(module, given) if not isinstance(given.x, PackedSequence) else None


def _backward_hooks(module: Any, given: Given) -> Any:
    seen: list[Any] = []
    module.register_full_backward_pre_hook(lambda m, g: seen.append([None if t is None else t.clone() for t in g]))
    module.register_full_backward_hook(lambda m, gi, go: seen.append([None if t is None else t.clone() for t in go]))
    return _trained(module, given), seen


def _functional_call(module: Any, given: Given) -> Any:
    weights = {k: (2 * p.detach()).requires_grad_() for k, p in module.named_parameters()}
    results = functional_call(module, weights, (given.x, given.hx))
    tensors = [t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]
    return tensors, torch.autograd.grad(weigh(tensors), list(weights.values()))


def _func_grad(module: Any, given: Given) -> Any:
    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        results = functional_call(module, weights, (given.x, given.hx))
        return weigh(torch.utils._pytree.tree_leaves(results))

    with torch.backends.mkldnn.flags(enabled=False):
        return torch.func.grad(loss)({k: p.detach() for k, p in module.named_parameters()})


def _maml(module: Any, given: Given) -> Any:
    """One inner step, kept in the graph; the outer loss is differentiated through it."""
    with torch.backends.mkldnn.flags(enabled=False):
        names, weights = zip(*module.named_parameters(), strict=True)
        inner = torch.autograd.grad(weigh(call(module, given)), weights, create_graph=True)
        moved = {n: w - 0.01 * g for n, w, g in zip(names, weights, inner, strict=True)}
        results = functional_call(module, moved, (given.x, given.hx))
        weigh(t for t in torch.utils._pytree.tree_leaves(results) if isinstance(t, torch.Tensor)).backward()
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
        t for t in torch.utils._pytree.tree_leaves(model(given.x)) if isinstance(t, torch.Tensor)]  # fmt: skip


IDIOMS = [_names, _weights_listed, _attributes, _hooks, _hook_replaces, _backward_hooks, _functional_call, _func_grad,
          _maml, _steps, _sequential]  # fmt: skip


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda f: f.__name__.strip("_"))
@each(MODULES)
def test_modules(subject: Any, idiom: Callable[..., Any]) -> None:
    if idiom is _func_grad and subject.impl not in ("auto", "torch"):
        pytest.skip("an implementation that is named refuses torch.func: test_cpu")
    check(idiom, subject)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each(s for s in MODULES if s.impl != "cpu")
def test_other_dtypes(subject: Any, dtype: torch.dtype) -> None:
    """module.to(dtype) and input.to(dtype): the dtypes of results and gradients, and rough values."""

    def idiom(module: Any, given: Given) -> Any:
        module.to(dtype)
        x = given.x if given.x.dtype == torch.int64 else given.x.detach().to(dtype)
        hx = torch.utils._pytree.tree_map(lambda t: t.detach().to(dtype), given.hx)
        outs = call(module, given, x, hx)
        weigh(outs).backward()
        return [t.dtype for t in (*outs, *(p.grad for p in module.parameters()))], [t.shape for t in outs]

    check(idiom, subject)


@each(replace(s, T=min(s.T, 4)) for s in MODULES if s.impl == "auto")
def test_meta_and_skip_init(subject: Any) -> None:
    def idiom(module: Any, given: Given) -> Any:
        module.to("meta")
        x, hx = given.x.to("meta"), torch.utils._pytree.tree_map(lambda t: t.to("meta"), given.hx)
        outs = call(module, given, x, hx)
        made = nn.utils.skip_init(type(module), 3, 4)
        return [(t.shape, t.dtype, t.device) for t in outs], [p.shape for p in made.parameters()]

    check(idiom, subject)
