"""Flax's GRUCell, LSTMCell, OptimizedLSTMCell and SimpleCell, of linen and of nnx, as layers of fastcells.

Flax multiplies from the right: kernels [I, H] and [H, H], a Dense for each gate (`ir iz in hr hz hn`), or in nnx one
for all (`dense_i` [I, G*H], `dense_h`), gates in torch's order and with torch's equations; the GRU is reset-after.
Not every Dense has a bias: `ir iz in hn` of linen's GRU, `dense_i` of nnx's, `hi hf hg ho` of the LSTMs, `i` of
SimpleCell. Source: flax/linen/recurrent.py and flax/nnx/nn/recurrent.py, Flax 0.12.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcells.layers import GRU, LSTM, RNN
from fastcells.weights.loaded import GATES, Direction, Loaded, check_shape, stack, tensor

Tree = Mapping[str, Any]
# nnx spells the input's forget gate `if_`.
GATE_NAMES = {"GRU": ("r", "z", "n"), "LSTM": ("i", "f", "g", "o"), "RNN": ("",)}
OF_EACH_GATE = {cell: {side + gate for side in "ih" for gate in gates} for cell, gates in GATE_NAMES.items()}
FUSED = {"dense_i", "dense_h"}
BOTH = ("forward_rnn", "backward_rnn")
MGU = {"if", "in", "hf", "hn"}


def load_flax(params: Any, *, nonlinearity: str = "tanh", batch_first: bool = True) -> RNN | GRU | LSTM:
    """`model.init(...)`'s tree, or `nnx.state(module)` -> the fastcells layer with its weights. Flax is not imported.

    params: nested mappings with one recurrent cell somewhere inside, or one Bidirectional; or several such trees, which
    become one stack. Leaves: whatever numpy makes an array of.

    A tree holds numbers alone. Taken for granted are what it cannot tell: gate_fn sigmoid, activation_fn tanh (of a
    SimpleCell: nonlinearity, "tanh" or "relu"), SimpleCell's `residual=False`, `reverse=False`, and `time_major=False`
    (batch_first). A bias that Flax lacks is a Parameter of zeros; to train as Flax does, freeze it.

    Raises:
        ValueError: no cell, several, one that torch.nn lacks (MGUCell), unknown keys, shapes that do not fit.
        TypeError: no mapping, such as a module itself.
    """
    trees = [params] if isinstance(params, Mapping) else params
    if not isinstance(trees, Sequence) or not trees or not all(isinstance(tree, Mapping) for tree in trees):
        got = type(params).__name__
        raise TypeError(f"expected a tree of parameters or several, got {got}; an nnx module's is nnx.state(module)")
    return stack([_one(tree, {"nonlinearity": nonlinearity}) for tree in trees], batch_first=batch_first)


def _one(tree: Tree, rnn_options: Mapping[str, str]) -> Loaded:
    found = list(_cells(tree, ()))
    if len(found) != 1:
        if not found:
            raise ValueError(f"the tree holds no recurrent cell, but {', '.join(sorted(_leaves(tree))) or 'nothing'}")
        paths = ", ".join("/".join(path) for path, _ in found)
        raise ValueError(f"the tree holds several recurrent cells: {paths}. Give one, or a list, which makes a stack")
    path, node = found[0]
    where = "/".join(path) or "cell"
    names = [*BOTH] if set(BOTH) <= set(node) else []
    parts = [_direction("/".join([*path, name]), _only(node[name])) for name in names] or [_direction(where, node)]
    cells = [cell for cell, _ in parts]
    if cells[0] != cells[-1]:
        raise ValueError(f"{where}: its directions are {cells[0]} and {cells[1]}")
    return Loaded(where, cells[0], rnn_options if cells[0] == "RNN" else {}, [direction for _, direction in parts])


def _only(node: Tree) -> Tree:
    """The one cell below a node."""
    found = [cell for _, cell in _cells(node, ())]
    if len(found) != 1:
        raise ValueError(f"a direction of a Bidirectional holds {len(found)} recurrent cells; keys: {sorted(node)}")
    return found[0]


def _cells(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Every recurrent cell in a tree, and each Bidirectional as one."""
    if not isinstance(node, Mapping):
        return
    keys = _keys(node)
    dense = {key for key, value in node.items() if isinstance(value, Mapping) and "kernel" in value}
    whole = any(names <= keys for names in OF_EACH_GATE.values()) or keys >= FUSED or keys >= MGU
    if (whole and dense) or set(BOTH) <= set(node):
        yield path, node
        return
    for key, child in node.items():
        yield from _cells(child, (*path, str(key)))


def _leaves(node: Tree, path: str = "") -> list[str]:
    """Where there are arrays in a tree."""
    found = []
    for key, child in node.items():
        found += _leaves(child, f"{path}{key}/") if isinstance(child, Mapping) else [f"{path}{key}"]
    return found


def _keys(node: Tree) -> set[str]:
    return {str(key).rstrip("_") for key in node}


def _direction(where: str, node: Tree) -> tuple[str, Direction]:
    keys = _keys(node) - {"rngs"}
    cell = next((cell for cell, names in OF_EACH_GATE.items() if keys == names), None)
    if cell is not None:
        parts = {str(key).rstrip("_"): _dense(f"{where}/{key}", child) for key, child in node.items() if key != "rngs"}
        H = parts["h" + GATE_NAMES[cell][0]][0].shape[0]
        (w_ih, b_ih), (w_hh, b_hh) = (
            _joined([(f"{where}/{side}{gate}", *parts[side + gate]) for gate in GATE_NAMES[cell]], H) for side in "ih"
        )
    elif keys == FUSED:
        (w_ih, b_ih), (w_hh, b_hh) = (_dense(f"{where}/{name}", node[name]) for name in ("dense_i", "dense_h"))
        H = w_hh.shape[0]
        cell = next((c for c, gates in GATES.items() if w_hh.shape[1] == gates * H), None)
    if cell is None:
        known = "MGUCell, which torch.nn lacks" if keys >= MGU else f"keys {sorted(keys)}"
        raise ValueError(f"{where}: expected GRUCell, LSTMCell, OptimizedLSTMCell or SimpleCell, got {known}")
    columns = GATES[cell] * H
    check_shape(w_hh, f"{where}: the recurrent kernels", H, columns)
    check_shape(w_ih, f"{where}: the input kernels", w_ih.shape[0], columns)
    for bias in (b_ih, b_hh):
        if bias is not None:
            check_shape(bias, f"{where}: the biases", columns)
    return cell, Direction(w_ih.T, w_hh.T, b_ih, b_hh)


def _dense(where: str, node: Tree) -> tuple[Tensor, Tensor | None]:
    """kernel [in, out] and bias [out] of a Dense."""
    if not isinstance(node, Mapping) or not {"kernel"} <= set(node) <= {"kernel", "bias"}:
        got = sorted(map(str, node)) if isinstance(node, Mapping) else type(node).__name__
        raise ValueError(f"{where}: expected kernel and maybe bias, got {got}")
    kernel = tensor(node["kernel"], f"{where}/kernel")
    if kernel.dim() != 2:
        raise ValueError(f"{where}/kernel: expected shape [in, out], got {list(kernel.shape)}")
    bias = node.get("bias")
    return kernel, None if bias is None else tensor(bias, f"{where}/bias")


def _joined(gates: Sequence[tuple[str, Tensor, Tensor | None]], H: int) -> tuple[Tensor, Tensor | None]:
    """The Denses of all gates as one."""
    for where, kernel, bias in gates:
        check_shape(kernel, f"{where}/kernel", gates[0][1].shape[0], H)
        if bias is not None:
            check_shape(bias, f"{where}/bias", H)
    kernel = torch.cat([kernel for _, kernel, _ in gates], 1)
    if all(bias is None for *_, bias in gates):
        return kernel, None
    return kernel, torch.cat([kernel.new_zeros(H) if bias is None else bias for _, kernel, bias in gates])
