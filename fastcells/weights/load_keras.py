"""Keras's SimpleRNN, GRU, LSTM and Bidirectional as layers of fastcells.

Keras multiplies from the right: kernel [I, G*H], recurrent_kernel [H, G*H]. Gates: GRU z r h, LSTM i f c o. A bias
[G*H] belongs to the input; that of a GRU with `reset_after=True` is [2, 3*H], the input's and the recurrent one. h' is
torch's: `z * h + (1 - z) * hh`. Source: `call` of keras/src/layers/rnn/gru.py, lstm.py and simple_rnn.py, Keras 3.15.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastcells.layers import GRU, LSTM, RNN
from fastcells.weights.loaded import GATES, Direction, Loaded, check_shape, reorder, stack, tensor

CELLS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}
TO_TORCH = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 1, 2, 3)}
Config = Mapping[str, Any]


def load_keras(layer: Any, config: Config | None = None) -> RNN | GRU | LSTM:
    """A built `keras.layers.GRU(...)` -> the fastcells layer with its weights, batch first. Keras is not imported.

    layer: a SimpleRNN, GRU, LSTM or Bidirectional (checked with Keras 3); or several, which become one stack, each with
    `return_sequences=True` but the last; or the arrays of `layer.get_weights()`, with config `layer.get_config()`
    (without it Keras's defaults hold, except what the shapes tell: the cell, reset_after, biases, two directions).

    The layer returns all outputs and the last state, whatever return_sequences and return_state say, and knows no
    masks: pack the input. A bias that Keras lacks is a Parameter of zeros; to train as Keras does, freeze it.

    Raises:
        ValueError: shapes that do not fit, a layer that is not built, and what torch.nn's layers cannot express:
            other activations, `go_backwards`, `stateful`, a merge_mode but "concat".
        TypeError: another kind of layer.
    Warns of dropout and recurrent_dropout, which are not carried over.
    """
    if hasattr(layer, "get_weights"):
        layers = [_of_layer(layer, last=True)]
        configs = [layer.get_config()]
    elif isinstance(layer, Sequence) and layer and all(hasattr(each, "get_weights") for each in layer):
        layers = [_of_layer(each, last=each is layer[-1]) for each in layer]
        configs = [each.get_config() for each in layer]
    elif isinstance(layer, Sequence) and layer:
        layers, configs = [_of_arrays("layer", layer, config or {}, None)], [config or {}]
    else:
        raise TypeError(f"expected a Keras layer, several, or the arrays of get_weights(), got {type(layer).__name__}")
    for config in configs:
        own = _own(config)
        for key in ("dropout", "recurrent_dropout"):
            if own.get(key, 0):
                name = own.get("name", "layer")
                warnings.warn(f"{name}: {key}={own[key]}, of training, is not carried over", stacklevel=2)
    time_major = {bool(c.get("layer", {}).get("config", c).get("time_major", False)) for c in configs}
    if len(time_major) > 1:
        raise ValueError("the layers differ in time_major")
    return stack(layers, batch_first=not time_major.pop())


def _of_layer(layer: Any, *, last: bool) -> Loaded:
    config, kind = layer.get_config(), type(layer).__name__
    where = str(config.get("name", kind))
    inner = config.get("layer", {}).get("class_name") if kind == "Bidirectional" else kind
    if inner not in CELLS:
        got = kind if inner == kind else f"{kind} of {inner}"
        raise TypeError(f"{where}: expected SimpleRNN, GRU, LSTM or Bidirectional of one of them, got {got}")
    arrays = layer.get_weights()
    if not arrays:
        raise ValueError(f"{where} has no weights yet: build or call it first")
    if not last and not _own(config).get("return_sequences", False):
        raise ValueError(f"{where}: return_sequences=False; the layer above it would see its last output alone")
    return _of_arrays(where, arrays, config, CELLS[inner])


def _own(config: Config) -> Config:
    """The configuration of the recurrent layer itself, which a Bidirectional has inside."""
    inner: Config = config["layer"]["config"] if "layer" in config else config
    return inner


def _of_arrays(where: str, arrays: Sequence[Any], config: Config, cell: str | None) -> Loaded:
    """cell: None where the shapes have to tell."""
    own = _own(config)
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            f"{where}: expected kernel, recurrent_kernel and maybe bias, or twice that of a Bidirectional, "
            f"got {len(arrays)} arrays"
        )
    size = len(arrays) // (2 if len(arrays) in (4, 6) else 1)
    names = ("kernel", "recurrent_kernel", "bias")[:size]
    parts = [
        [tensor(a, f"{where}: {name}") for a, name in zip(arrays[i : i + size], names, strict=True)]
        for i in range(0, len(arrays), size)
    ]
    if ("layer" in config) != (len(parts) == 2) and config:
        raise ValueError(f"{where}: the configuration is not that of {len(parts)} direction(s), as the arrays are")
    cell = cell or _cell(where, parts[0][1])
    options = _options(where, cell, parts[0], own)
    _check_config(where, cell, config)
    return Loaded(where, cell, options, [_direction(where, cell, options, part) for part in parts])


def _cell(where: str, recurrent: Tensor) -> str:
    """Which cell has such a recurrent_kernel [H, G*H]."""
    H, columns = recurrent.shape if recurrent.dim() == 2 else (0, 0)
    for cell, gates in GATES.items():
        if H and columns == gates * H:
            return cell
    raise ValueError(
        f"{where}: recurrent_kernel: expected shape [H, H], [H, 3*H] or [H, 4*H], got {[*recurrent.shape]}"
    )


def _options(where: str, cell: str, part: Sequence[Tensor], own: Config) -> dict[str, Any]:
    if cell == "RNN":
        return {"nonlinearity": own.get("activation", "tanh")}
    if cell == "LSTM":
        return {}
    told = part[2].dim() == 2 if len(part) == 3 else None
    reset_after = own.get("reset_after", told)
    if reset_after is None:
        raise ValueError(f"{where}: a GRU without bias does not tell reset_after: give config=layer.get_config()")
    if told is not None and told != reset_after:
        raise ValueError(
            f"{where}: reset_after={reset_after}, but bias has shape {list(part[2].shape)}, as with {told}"
        )
    return {"reset_after": bool(reset_after)}


def _direction(where: str, cell: str, options: Config, part: Sequence[Tensor]) -> Direction:
    kernel, recurrent = part[:2]
    G, order = GATES[cell], TO_TORCH[cell]
    H = recurrent.shape[0]
    check_shape(recurrent, f"{where}: recurrent_kernel", H, G * H)
    if kernel.dim() != 2 or kernel.shape[1] != G * H:
        raise ValueError(f"{where}: kernel: expected shape [I, {G * H}], got {list(kernel.shape)}")
    b_ih = b_hh = None
    if len(part) == 3 and options.get("reset_after"):
        check_shape(part[2], f"{where}: bias", 2, G * H)
        b_ih, b_hh = (reorder(bias, order) for bias in part[2])
    elif len(part) == 3:
        check_shape(part[2], f"{where}: bias", G * H)
        b_ih = reorder(part[2], order)
    return Direction(reorder(kernel.T, order), reorder(recurrent.T, order), b_ih, b_hh)


def _check_config(where: str, cell: str, config: Config) -> None:
    """ValueError for what torch.nn's layers cannot express."""
    both = "layer" in config
    if both and config.get("merge_mode", "concat") != "concat":
        raise ValueError(f"{where}: merge_mode={config['merge_mode']!r}; torch.nn's layers concatenate")
    backward = config.get("backward_layer", {}).get("config", {"go_backwards": True}) if both else {}
    for own, backwards in [(_own(config), False), (backward, True)][: 1 + both]:
        name = own.get("name", where)
        allowed = ("tanh", "relu") if cell == "RNN" else ("tanh",)
        for key, values in (("activation", allowed), ("recurrent_activation", ("sigmoid",))):
            if own.get(key, values[0]) not in values:
                raise ValueError(f"{name}: {key}={own[key]!r}; expected {' or '.join(map(repr, values))}")
        if own.get("stateful", False):
            raise ValueError(f"{name}: stateful=True; a layer of torch.nn is given its state, as hx")
        if bool(own.get("go_backwards", False)) != backwards:
            raise ValueError(
                f"{name}: go_backwards={not backwards}; torch.nn has no such layer. "
                "On x.flip(1) one that goes forwards gives the same: set the entry in the configuration"
            )
