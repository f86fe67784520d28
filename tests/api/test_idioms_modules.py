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
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastcells
from tests.support.idiom_cases import CORE, MODULES, Given, ResetBefore, each
from tests.support.idiom_outcomes import call, check, trained, weigh

OF_TORCH = (nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell, ResetBefore)


def _after(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The module is changed (or replaced by what the change returns), then trained on."""

    def idiom(module: nn.Module, given: Given) -> Any:
        changed = change(module)
        return trained(module if changed is None else changed, given)

    return idiom


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _state_dict_both_ways(module: Any) -> None:
    other = {**vars(nn), "ResetBefore": nn.GRU}[type(module).__name__](
        module.input_size, module.hidden_size,
        **{k: getattr(module, k) for k in ("num_layers", "bidirectional", "proj_size") if getattr(module, k, 0)},
    )  # fmt: skip
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


def _weight_norm_removed(module: Any) -> None:
    for name in _weights(module):
        parametrizations.weight_norm(module, name)
        nn.utils.parametrize.remove_parametrizations(module, name)


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


def _there_and_back(module: Any) -> Any:
    if isinstance(module, OF_TORCH) or not getattr(module, "reset_after", True):
        return module
    return fastcells.convert(fastcells.to_torch(module))


def _vector(module: Any) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(2 * vector, module.parameters())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": _saved,
    "state_dict": _state_dict_both_ways, "to_empty": _to_empty, "share_memory": lambda m: m.share_memory(),
    "double_float": lambda m: m.double().float(), "to": lambda m: m.to("cpu", torch.float64).to(torch.float32),
    "flatten_parameters": lambda m: getattr(m, "flatten_parameters", lambda: None)(),
    "reset_parameters": lambda m: (torch.manual_seed(1), m.reset_parameters(), m)[2],
    "weight_norm": _parametrized(parametrizations.weight_norm), "spectral_norm": _spectral_norm,
    "orthogonal": _parametrized(parametrizations.orthogonal), "old_weight_norm": _old_weight_norm,
    "weight_norm_deepcopy": lambda m: (_parametrized(parametrizations.weight_norm)(m), copy.deepcopy(m))[1],
    "weight_norm_removed": _weight_norm_removed,
    "prune": _parametrized(lambda m, n: prune.l1_unstructured(m, n, 0.3)),
    "prune_removed": _parametrized(lambda m, n: prune.remove(prune.l1_unstructured(m, n, 0.3), n)),
    "replaced": _replaced_weights, "swap_tensors": _swapped, "moved_by_swapping": _moved_by_swapping,
    "data": _data_set, "initialised": _initialised, "tied": _tied, "apply": lambda m: m.apply(lambda x: None),
    "zero_grad": lambda m: m.zero_grad(), "requires_grad_": lambda m: m.requires_grad_(False).requires_grad_(True),
    "there_and_back": _there_and_back, "vector": _vector,
    "bfloat16_float": lambda m: m.bfloat16().float(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@each(MODULES)
def test_changed_then_trained(subject: Any, change: str) -> None:
    check(_after(CHANGES[change]), subject)


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


@each(replace(s, T=min(s.T, 4)) for s in CORE if s.impl == "auto" and s.path == "aten")
def test_meta(subject: Any) -> None:
    def idiom(module: Any, given: Given) -> Any:
        module.to("meta")
        x, hx = given.x.to("meta"), torch.utils._pytree.tree_map(lambda t: t.to("meta"), given.hx)
        outs = call(module, given, x, hx)
        return [(t.shape, t.dtype, t.device) for t in outs]

    check(idiom, subject)


def test_skip_init() -> None:
    """torch.nn's cells can be made so, its layers cannot: their signatures do not say that they take a device."""
    made = [nn.utils.skip_init(cls, 3, 4) for cls in (fastcells.GRU, fastcells.LSTM, fastcells.RNN, fastcells.GRUCell)]
    with pytest.raises(RuntimeError, match="must support a 'device' arg"):
        nn.utils.skip_init(nn.GRU, 3, 4)
    assert [p.shape for p in made[0].parameters()] == [p.shape for p in nn.GRU(3, 4).parameters()]
    assert all(p.device.type == "cpu" for module in made for p in module.parameters())
