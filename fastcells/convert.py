"""Replace torch.nn's recurrent modules in a model by their fastcells twins, and back."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from fastcells import cells, layers
from fastcells.regularised import Rates

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
LACKING = (*Rates._fields, "return_states", "learned_state")
OURS_ONLY = (*LACKING, "impl", "reset_after")  # attributes that torch.nn's modules do not have


def convert(model: Module) -> Module:
    """`nn.GRU(...)` -> `fastcells.GRU(...)`, for every nn.RNN, GRU, LSTM and their cells in a module tree.

    In place, and returns `model`: the module objects stay the same and change their class, so that Parameters,
    buffers, hooks and whatever else refers to them go on working. Subclasses of torch's modules are left alone: their
    code may do something else.
    """
    for module in model.modules():
        if _kind(module) in TWINS:
            _change_class(module, TWINS[_kind(module)])
    return model


def from_torch(model: Module) -> Module:
    """A copy of a model with fastcells modules in place of torch.nn's recurrent ones; `model` stays as it is.

    The copy has Parameters of its own, with the same values. `convert` does the same in place.
    """
    return convert(copy.deepcopy(model))


def to_torch(model: Module) -> Module:
    """The way back from `convert`: fastcells modules become torch.nn's, for export or for a machine without us.

    In place, and returns `model`; of a copy, `to_torch(copy.deepcopy(model))`.

    Raises:
        ValueError: a GRU with `reset_after=False`, or another option that torch does not have. Nothing is changed then.
    """
    for name, module in model.named_modules():
        if _kind(module) in BACK:
            lacking = [] if getattr(module, "reset_after", True) else ["reset-before GRU"]
            lacking += [option for option in LACKING if getattr(module, option, None)]
            if lacking:
                where = f"{name!r}" if name else "the model itself"
                raise ValueError(f"{where} is {module!r}: torch.nn has no {' and no '.join(lacking)}")
    for module in model.modules():
        if _kind(module) in BACK:
            _change_class(module, BACK[_kind(module)])
            for name in OURS_ONLY:
                vars(module).pop(name, None)
    return model


def _kind(module: nn.Module) -> type[nn.Module]:
    """The module's class, looking through the subclass that a parametrization puts in front of it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if parametrize.is_parametrized(module):  # the weights are properties of a class made for this one module
        made = type(module)
        body = {k: v for k, v in vars(made).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), body)
    module.__class__ = cls
