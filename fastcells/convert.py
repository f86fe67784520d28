"""Replace torch.nn's recurrent modules in a model by their fastcells twins, and back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from fastcells import cells, layers

Module = TypeVar("Module", bound=nn.Module)

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: layers.RNN,
    nn.GRU: layers.GRU,
    nn.LSTM: layers.LSTM,
    nn.RNNCell: cells.RNNCell,
    nn.GRUCell: cells.GRUCell,
    nn.LSTMCell: cells.LSTMCell,
}
BACK = {ours: theirs for theirs, ours in TWINS.items()}
OURS_ONLY = ("impl", "reset_after")  # attributes that torch.nn's modules do not have


def convert(model: nn.Module) -> nn.Module:
    """`nn.GRU(...)` -> `fastcells.GRU(...)`, for every nn.RNN, GRU, LSTM and their cells in a module tree.

    The twins share the very Parameters, buffers and hooks of the modules that they replace, so optimizers that hold
    them go on working. Submodules are replaced in place and `model` is returned; if `model` is itself such a module,
    its twin is returned. Subclasses of torch's modules are left alone: their code may do something else.
    """
    return _replace(model, TWINS, {})


def to_torch(model: nn.Module) -> nn.Module:
    """The way back from `convert`: fastcells modules become torch.nn's, for export or for a machine without us.

    Raises:
        ValueError: a GRU with `reset_after=False`, which torch does not have. Nothing is replaced then.
    """
    for name, module in model.named_modules():
        if _kind(module) in BACK and not getattr(module, "reset_after", True):
            where = f"{name!r}" if name else "the model itself"
            raise ValueError(f"{where} is {module!r}: torch.nn has no reset-before GRU")
    return _replace(model, BACK, {})


def _replace(
    module: nn.Module, twins: dict[type[nn.Module], type[nn.Module]], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module in done:  # used in several places: the twin has to be one and the same too
        return done[module]
    kind = _kind(module)
    done[module] = module if kind not in twins else _twin(module, kind, twins[kind])
    for name, child in module._modules.items():
        if child is not None:
            done[module]._modules[name] = _replace(child, twins, done)
    return done[module]


def _kind(module: nn.Module) -> type[nn.Module]:
    """The module's class, looking through the subclass that a parametrization puts in front of it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _twin(module: nn.Module, kind: type[nn.Module], cls: type[nn.Module]) -> nn.Module:
    if type(module) is not kind:  # parametrized: the weights are properties of a class made for this one module
        body = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        cls = type(type(module).__name__, (cls,), body)
    twin = cls.__new__(cls)
    for key, value in vars(module).items():
        # Containers are copied, so that a hook or parameter registered later belongs to one of the two only.
        twin.__dict__[key] = value.copy() if isinstance(value, dict | list) else value
    if kind in BACK:
        for name in OURS_ONLY:
            twin.__dict__.pop(name, None)
    return twin
