"""`load_flax`: what Flax itself computed (tests/support/record_weights.py), a step by hand, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastcells
from tests.support.accuracy import assert_equal_to_rounding

CASES = json.loads((Path(__file__).parents[1] / "support/weights_flax.json").read_text())["cases"]


def arrays(tree: Any) -> Any:
    """The tree of a case with arrays as its leaves."""
    return {k: arrays(v) for k, v in tree.items()} if isinstance(tree, dict) else np.float32(tree)


def params(name: str) -> Any:
    return arrays(copy.deepcopy(CASES[name]["params"]))


def states(carry: Any, lstm: bool) -> list[torch.Tensor]:
    """Flax's carry is h, of an LSTM (c, h)."""
    return [torch.tensor(s) for s in (reversed(carry) if lstm else [carry])]


@pytest.mark.parametrize("name", CASES)
def test_as_flax_computes(name: str) -> None:
    case, lstm = CASES[name], "LSTM" in name
    loaded = fastcells.load_flax(params(name))
    assert type(loaded).__name__ == ("LSTM" if lstm else "GRU" if "GRU" in name else "RNN")
    assert loaded.batch_first and loaded.bidirectional == ("Bidirectional" in name)
    with torch.no_grad():
        y, last = loaded(torch.tensor(case["x"]))
    carries = case["carry"] if loaded.bidirectional else [case["carry"]]
    expected = [s for carry in carries for s in states(carry, lstm)]  # of each direction
    ours = [s[d] for d in range(len(carries)) for s in (last if lstm else (last,))]
    assert_equal_to_rounding([y, *ours], [torch.tensor(case["y"]), *expected])


def dense(kernel: float, bias: float | None = None) -> dict[str, Any]:
    return {"kernel": np.float32([[kernel]]), **({} if bias is None else {"bias": np.float32([bias])})}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_step_by_hand() -> None:
    """One unit, h = 0.5, c = -0.25: each gate has numbers of its own, so that no two may be exchanged."""
    x, h, c = 2.0, 0.5, -0.25
    given = torch.tensor([[[x]]]), torch.tensor([[[h]]])
    tree = {"ir": dense(0.1, 0.7), "iz": dense(0.2, -0.8), "in": dense(0.3, 0.9)}
    tree |= {"hr": dense(1.1), "hz": dense(-1.2), "hn": dense(1.3, -0.09)}
    r, z = sigmoid(0.1 * x + 0.7 + 1.1 * h), sigmoid(0.2 * x - 0.8 - 1.2 * h)
    n = math.tanh(0.3 * x + 0.9 + r * (1.3 * h - 0.09))
    assert fastcells.load_flax(tree)(*given)[0].item() == pytest.approx((1 - z) * n + z * h, rel=1e-6)

    tree = {"ii": dense(0.1), "if_": dense(0.2), "ig": dense(0.3), "io": dense(0.4)}  # nnx's name for `if`
    tree |= {"hi": dense(1.1, 0.7), "hf": dense(-1.2, -0.8), "hg": dense(1.3, 0.9), "ho": dense(-1.4, -0.5)}
    i, f = sigmoid(0.1 * x + 1.1 * h + 0.7), sigmoid(0.2 * x - 1.2 * h - 0.8)
    g, o = math.tanh(0.3 * x + 1.3 * h + 0.9), sigmoid(0.4 * x - 1.4 * h - 0.5)
    y, (_, c_n) = fastcells.load_flax(tree)(given[0], (given[1], torch.tensor([[[c]]])))
    assert c_n.item() == pytest.approx(f * c + i * g, rel=1e-6)
    assert y.item() == pytest.approx(o * math.tanh(f * c + i * g), rel=1e-6)

    tree = {"i": dense(-0.3, 0.7), "h": dense(0.6)}
    for nonlinearity, act in (("tanh", math.tanh), ("relu", lambda v: max(v, 0.0))):
        y = fastcells.load_flax(tree, nonlinearity=nonlinearity)(*given)[0].item()
        assert y == pytest.approx(act(-0.3 * x + 0.7 + 0.6 * h), rel=1e-6)


def test_the_cell_is_found_in_a_model_and_several_make_a_stack() -> None:
    lower, upper = params("linen-GRUCell")["params"]["cell"], params("linen-GRUCell")["params"]["cell"]
    for gate in ("ir", "iz", "in"):
        upper[gate]["kernel"] = upper[gate]["kernel"][:2]
    model = {"params": {"GRUCell_0": lower, "GRUCell_1": upper, "Dense_0": dense(1.0, 2.0)}}
    with pytest.raises(ValueError, match=r"several recurrent cells: params/GRUCell_0, params/GRUCell_1\. Give one"):
        fastcells.load_flax(model)
    only = {"params": {"Dense_0": dense(1.0), "GRUCell_0": lower}}
    x = torch.tensor(CASES["linen-GRUCell"]["x"])
    below = fastcells.load_flax(only, batch_first=False)
    assert not below.batch_first
    two = fastcells.load_flax([lower, model["params"]["GRUCell_1"]], batch_first=False)
    assert two.num_layers == 2
    assert_equal_to_rounding([two(x)[0]], [fastcells.load_flax(upper, batch_first=False)(below(x)[0])[0]])


def test_state_of_nnx_with_random_streams() -> None:
    tree = params("nnx-GRUCell")
    plain = fastcells.load_flax(tree)
    stream = {"count": np.uint32(0), "key": np.uint32(1)}
    tree["rngs"] = tree["cell"]["rngs"] = stream
    assert torch.equal(fastcells.load_flax(tree).weight_hh_l0, plain.weight_hh_l0)


def test_what_is_loaded_owns_its_memory() -> None:
    tree = {side: {"kernel": torch.ones(2, 2)} for side in ("dense_i", "dense_h")}
    loaded = fastcells.load_flax(tree)
    with torch.no_grad():
        for p in loaded.parameters():
            assert p.is_contiguous() and p.requires_grad
            p.zero_()
    assert all((node["kernel"] == 1).all() for node in tree.values())


def edited(name: str, *path: str, to: Any) -> Any:
    """The tree of a case with one entry replaced, or with `to=None` removed."""
    tree = params(name)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if to is None:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return tree


CELL, NNX = ("params", "cell"), ("cell",)
REFUSED = [
    ("linen-GRUCell", (*CELL, "hz", "scale"), 1.0, r"cell/hz: expected kernel and maybe bias, got \['bias|'kernel'"),
    ("linen-GRUCell", (*CELL, "surplus"), dense(1.0), r"cell: expected GRUCell, .*SimpleCell, got keys .*'surplus'"),
    ("linen-GRUCell", (*CELL, "hz"), None, r"no recurrent cell, but params/cell/hn/bias, params/cell/hn/kernel"),
    (
        "linen-GRUCell",
        (*CELL, "iz", "kernel"),
        np.ones((3, 4), "f"),
        r"cell/iz/kernel: expected .* \[3, 2\], got \[3, 4",
    ),
    (
        "linen-LSTMCell",
        (*CELL, "hf", "kernel"),
        np.ones((3, 2), "f"),
        r"hf/kernel: expected shape \[2, 2\], got \[3, 2",
    ),
    ("linen-LSTMCell", (*CELL, "hf", "bias"), np.ones(3, "f"), r"cell/hf/bias: expected shape \[2\], got \[3\]"),
    ("nnx-GRUCell", (*NNX, "dense_h", "kernel"), np.ones((2, 5), "f"), "cell: expected GRUCell, LSTMCell"),
    ("nnx-GRUCell", (*NNX, "dense_i", "kernel"), np.ones((3, 5), "f"), r"input kernels: expected .* \[3, 6\], got"),
    ("nnx-GRUCell", (*NNX, "dense_i", "bias"), np.ones(5, "f"), r"cell: the biases: expected shape \[6\], got \[5\]"),
    ("nnx-GRUCell", (*NNX, "dense_i", "kernel"), np.ones(6, "f"), r"dense_i/kernel: expected shape \[in, out\]"),
]


@pytest.mark.parametrize(("name", "path", "to", "message"), REFUSED, ids=["-".join(row[1][1:]) for row in REFUSED])
def test_refused_by_name(name: str, path: tuple[str, ...], to: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastcells.load_flax(edited(name, *path, to=to))


def test_other_cells() -> None:
    mgu = {"if": dense(1.0, 2.0), "in": dense(1.0, 2.0), "hf": dense(1.0), "hn": dense(1.0, 2.0)}
    with pytest.raises(ValueError, match=r"got MGUCell, which torch\.nn lacks"):
        fastcells.load_flax({"params": {"cell": mgu}})
    gru, lstm = (params(f"linen-{cell}Cell")["params"] for cell in ("GRU", "LSTM"))
    with pytest.raises(ValueError, match="its directions are GRU and LSTM"):
        fastcells.load_flax({"forward_rnn": gru, "backward_rnn": lstm})
    with pytest.raises(ValueError, match="no recurrent cell, but bias, kernel"):
        fastcells.load_flax(dense(1.0, 2.0))
    for given in (3, [], [gru, 3], object()):
        with pytest.raises(TypeError, match=r"expected a tree .*; an nnx module's is nnx\.state\(module\)"):
            fastcells.load_flax(given)


def test_bfloat16() -> None:
    """jax's arrays of 16 bits come to numpy in a dtype of ml_dtypes."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="onnx and jax bring it")
    tree = {side: {"kernel": np.ones((1, 1), ml_dtypes.bfloat16)} for side in "ih"}
    assert fastcells.load_flax(tree).weight_ih_l0.dtype == torch.bfloat16
