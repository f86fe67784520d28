"""Initialisations of recurrent weights, gate by gate: `fastcells.init.orthogonal_(layer)` after the constructor.

For layers and cells, ours and torch.nn's, of every layer and direction. In place, as `torch.nn.init`'s; they return the
module, so that `lstm = fastcells.init.keras_(fastcells.LSTM(64, 128))` is one line. A weight under a parametrization
(`torch.nn.utils.parametrizations`) gets its values through it.

`torch.nn.init` on a whole `weight_hh` [G*H, H] takes the G gates for one matrix: its orthogonal columns leave no single
gate orthogonal, and its Glorot bound is that of a layer G times as wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)


def orthogonal_(module: Module, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Module:
    """Each gate's recurrent matrix becomes orthogonal [H, H] (with `proj_size=P` semi-orthogonal [H, P]).

    gain scales them. The other parameters stay as they are. Source: Saxe et al. 2014 (arXiv 1312.6120).
    """
    for name, gates in _weights(module, "weight_hh"):
        _fill(module, name, gates, lambda block: nn.init.orthogonal_(block, gain, generator))
    return module


def glorot_(module: Module, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Module:
    """Each gate's input matrix [H, I] becomes U(-a, a), `a = gain * sqrt(6 / (I + H))`.

    The other parameters stay as they are. Source: Glorot and Bengio 2010, equation 16.
    """
    for name, gates in _weights(module, "weight_ih"):
        _fill(module, name, gates, lambda block: nn.init.xavier_uniform_(block, gain, generator))
    return module


def forget_bias_(module: Module, value: float = 1.0) -> Module:
    """The forget gates' bias of an LSTM becomes `value`: `b_ih` holds it, and `b_hh`, which is added to it, holds 0.

    Source: Gers et al. 2000; Jozefowicz et al. 2015, section 2.2.

    Raises:
        ValueError: another cell than an LSTM, or one without biases.
    """
    names = [*_weights(module, "bias")]
    if any(gates != 4 for _, gates in _weights(module, "weight_hh")):
        raise ValueError(f"a forget gate is an LSTM's: got {module!r}")
    if not names:
        raise ValueError(f"there is no bias to set: got {module!r}")
    for name, _ in names:
        new = getattr(module, name).detach().clone()
        H = len(new) // 4
        new[H : 2 * H] = value if "bias_ih" in name else 0.0
        _set(module, name, new)
    return module


def keras_(module: Module, *, generator: torch.Generator | None = None) -> Module:
    """The distributions that Keras starts its SimpleRNN, GRU and LSTM from.

    W_ih Glorot uniform and W_hh orthogonal, each over all gates at once as Keras takes them; biases 0, an LSTM's forget
    gates 1 (`unit_forget_bias`); a projection, which Keras lacks, Glorot uniform. Source: documentation of
    keras.layers.LSTM.
    """
    for name, _ in [*_weights(module, "weight_ih"), *_weights(module, "weight_hr")]:
        _fill(module, name, 1, lambda whole: nn.init.xavier_uniform_(whole, generator=generator))
    for name, _ in _weights(module, "weight_hh"):
        _fill(module, name, 1, lambda whole: nn.init.orthogonal_(whole, generator=generator))
    biases, gates = [*_weights(module, "bias")], {gates for _, gates in _weights(module, "weight_hh")}
    for name, _ in biases:
        _fill(module, name, 1, nn.init.zeros_)
    return forget_bias_(module) if biases and gates == {4} else module


def _weights(module: nn.Module, kind: str) -> Iterator[tuple[str, int]]:
    """The names of a layer's or cell's parameters of one kind, and how many gates each holds.

    Raises:
        TypeError: neither a recurrent layer nor a cell.
    """
    if isinstance(module, RNNBase):
        names = [name for group in module._all_weights for name in group]
    elif isinstance(module, RNNCellBase):
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    else:
        raise TypeError(f"expected a recurrent layer or cell of fastcells or torch.nn, got {type(module).__name__}")
    for name in names:
        if name.startswith(kind):
            yield name, getattr(module, name).shape[0] // module.hidden_size


def _fill(module: nn.Module, name: str, blocks: int, fill: Callable[[Tensor], object]) -> None:
    """Fill a parameter, block of rows by block of rows, each by itself."""
    weight = getattr(module, name).detach()
    # In float32 where it has 16 bits: LAPACK has no orthogonal matrices in those.
    new = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for block in new.chunk(blocks):
        fill(block)
    _set(module, name, new.to(weight.dtype))


def _set(module: nn.Module, name: str, new: Tensor) -> None:
    parameter = module._parameters.get(name)
    with torch.no_grad():
        if parameter is not None:
            parameter.copy_(new)
        elif parametrize.is_parametrized(module, name):
            setattr(module, name, new)
        else:
            raise ValueError(f"{name} is computed from other parameters (weight norm, pruning): initialise before that")
