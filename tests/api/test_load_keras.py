"""`load_keras`: what Keras itself computed (tests/support/record_weights.py), a step by hand, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastcells
from tests.support.accuracy import assert_equal_to_rounding

CASES = json.loads((Path(__file__).parents[1] / "support/weights_keras.json").read_text())["cases"]
ARRAY = np.float32


def keras_layer(kind: str, config: dict[str, Any], weights: list[Any]) -> Any:
    """What `load_keras` asks a Keras layer for."""
    methods = {"get_config": lambda self: config, "get_weights": lambda self: [ARRAY(w) for w in weights]}
    return type(kind, (), methods)()


def layers_of(name: str) -> list[Any]:
    return [keras_layer(each["class"], each["config"], each["weights"]) for each in CASES[name]["layers"]]


def changed(name: str, **config: Any) -> Any:
    """The layer of a case with another configuration."""
    (given,) = CASES[name]["layers"]
    return keras_layer(given["class"], {**given["config"], **config}, given["weights"])


def tensors(nested: Any) -> torch.Tensor:
    return torch.tensor(nested, dtype=torch.float32)


def assert_as_keras(layer: Any, name: str, *, flipped: bool = False) -> None:
    """state: of each direction after the other, h, and of an LSTM also c."""
    case = CASES[name]
    x = tensors(case["x"])
    with torch.no_grad():
        y, last = layer(x.flip(1) if flipped else x)
    states = last if isinstance(last, tuple) else (last,)
    top = [s[-1 - layer.bidirectional :] for s in states]  # Keras returns the topmost layer's
    expected = [tensors(s) for s in case["state"]]
    ours = [s[d] for d in range(1 + layer.bidirectional) for s in top]
    assert_equal_to_rounding([y, *ours], [tensors(case["y"]), *expected])


@pytest.mark.parametrize("name", [name for name in CASES if name != "LSTM-backwards"])
def test_as_keras_computes(name: str) -> None:
    layers = layers_of(name)
    loaded = fastcells.load_keras(layers if len(layers) > 1 else layers[0])
    assert loaded.batch_first and loaded.num_layers == len(layers)
    assert type(loaded).__name__ == name.replace("Simple", "").split("-")[name.startswith(("stack", "Bi"))].replace(
        "Bidirectional", "GRU"
    )
    assert loaded.bias == ("no-bias" not in name)
    assert_as_keras(loaded, name)


@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "GRU-reset-before", "LSTM", "Bidirectional-GRU", "LSTM-no-bias"])
def test_arrays_alone_tell_the_cell(name: str) -> None:
    (given,) = CASES[name]["layers"]
    assert_as_keras(fastcells.load_keras([ARRAY(w) for w in given["weights"]]), name)


def test_arrays_with_a_configuration() -> None:
    for name in ("GRU-no-bias", "GRU-reset-before-no-bias", "SimpleRNN-relu"):
        (given,) = CASES[name]["layers"]
        arrays = [ARRAY(w) for w in given["weights"]]
        assert_as_keras(fastcells.load_keras(arrays, given["config"]), name)
    with pytest.raises(ValueError, match="a GRU without bias does not tell reset_after"):
        fastcells.load_keras([ARRAY(w) for w in CASES["GRU-no-bias"]["layers"][0]["weights"]])


def test_backwards_is_refused_and_the_message_is_right() -> None:
    with pytest.raises(ValueError, match=r"lstm\w*: go_backwards=True; torch\.nn has no such layer\. On x\.flip\(1\)"):
        fastcells.load_keras(layers_of("LSTM-backwards")[0])
    assert_as_keras(fastcells.load_keras(changed("LSTM-backwards", go_backwards=False)), "LSTM-backwards", flipped=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_step_by_hand() -> None:
    """One unit, h = 0.5: each gate has numbers of its own, so that no two may be exchanged."""
    h, x = 0.5, 2.0
    z, r = sigmoid(0.1 * x + 1.1 * h + 0.7 + 0.07), sigmoid(0.2 * x - 1.2 * h - 0.8 + 0.08)
    after = math.tanh(0.3 * x + 0.9 + r * (1.3 * h - 0.09))
    gru = [ARRAY([[0.1, 0.2, 0.3]]), ARRAY([[1.1, -1.2, 1.3]])]
    both = ARRAY([[0.7, -0.8, 0.9], [0.07, 0.08, -0.09]])
    given = torch.tensor([[[x]]]), torch.tensor([[[h]]])
    expected = z * h + (1 - z) * after
    assert fastcells.load_keras([*gru, both])(*given)[0].item() == pytest.approx(expected, rel=1e-6)

    z, r = sigmoid(0.1 * x + 1.1 * h + 0.7), sigmoid(0.2 * x - 1.2 * h - 0.8)
    before = math.tanh(0.3 * x + 0.9 + 1.3 * (r * h))
    expected = z * h + (1 - z) * before
    assert fastcells.load_keras([*gru, both[0]])(*given)[0].item() == pytest.approx(expected, rel=1e-6)

    c = -0.25
    i, f = sigmoid(0.1 * x + 1.1 * h + 0.7), sigmoid(0.2 * x - 1.2 * h - 0.8)
    g, o = math.tanh(0.3 * x + 1.3 * h + 0.9), sigmoid(0.4 * x - 1.4 * h - 0.5)
    lstm = [ARRAY([[0.1, 0.2, 0.3, 0.4]]), ARRAY([[1.1, -1.2, 1.3, -1.4]]), ARRAY([0.7, -0.8, 0.9, -0.5])]
    y, (_, c_n) = fastcells.load_keras(lstm)(given[0], (given[1], torch.tensor([[[c]]])))
    assert c_n.item() == pytest.approx(f * c + i * g, rel=1e-6)
    assert y.item() == pytest.approx(o * math.tanh(f * c + i * g), rel=1e-6)


REFUSED = [
    ("GRU", {"activation": "relu"}, "activation='relu'; expected 'tanh'"),
    ("SimpleRNN", {"activation": "elu"}, "activation='elu'; expected 'tanh' or 'relu'"),
    ("LSTM", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'; expected 'sigmoid'"),
    ("LSTM", {"stateful": True}, "stateful=True"),
    ("GRU", {"reset_after": False}, r"reset_after=False, but bias has shape \[2, 6\]"),
    ("Bidirectional-GRU", {"merge_mode": "sum"}, "merge_mode='sum'"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED, ids=[f"{r[0]}-{next(iter(r[1]))}" for r in REFUSED])
def test_refused_by_name(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastcells.load_keras(changed(name, **config))


def test_inside_a_bidirectional_too() -> None:
    config = CASES["Bidirectional-GRU"]["layers"][0]["config"]
    for side in ("layer", "backward_layer"):
        inner = {**config[side], "config": {**config[side]["config"], "recurrent_activation": "relu"}}
        with pytest.raises(ValueError, match="recurrent_activation='relu'"):
            fastcells.load_keras(changed("Bidirectional-GRU", **{side: inner}))


def test_what_is_not_a_recurrent_layer() -> None:
    with pytest.raises(
        TypeError, match="dense: expected SimpleRNN, GRU, LSTM or Bidirectional of one of them, got Dens"
    ):
        fastcells.load_keras(keras_layer("Dense", {"name": "dense"}, []))
    inner = {"class_name": "ConvLSTM2D", "config": {}}
    with pytest.raises(TypeError, match="got Bidirectional of ConvLSTM2D"):
        fastcells.load_keras(keras_layer("Bidirectional", {"layer": inner}, []))
    with pytest.raises(ValueError, match="gru has no weights yet: build or call it first"):
        fastcells.load_keras(keras_layer("GRU", {"name": "gru"}, []))
    with pytest.raises(TypeError, match="got int"):
        fastcells.load_keras(3)


def test_shapes_are_named() -> None:
    kernel, recurrent, bias = (ARRAY(w) for w in CASES["LSTM"]["layers"][0]["weights"])
    for arrays, message in (
        ([kernel, recurrent[:, :7], bias], r"recurrent_kernel: expected shape .*, got \[2, 7\]"),
        ([kernel[:, :6], recurrent, bias], r"kernel: expected shape \[I, 8\], got \[3, 6\]"),
        ([kernel, recurrent, bias[:6]], r"bias: expected shape \[8\], got \[6\]"),
        ([kernel] * 5, "got 5 arrays"),
        ([kernel, recurrent.astype(np.float64), bias], "several dtypes"),
    ):
        with pytest.raises(ValueError, match=message):
            fastcells.load_keras(arrays)
    with pytest.raises(TypeError, match="layer: kernel: expected an array of floating point"):
        fastcells.load_keras([kernel.astype(int), recurrent, bias])


def test_stacks_that_do_not_fit() -> None:
    gru, lstm = layers_of("GRU")[0], layers_of("stack-LSTM")[1]
    with pytest.raises(ValueError, match="are no stack: their cell are GRU and LSTM"):
        fastcells.load_keras([gru, lstm])
    with pytest.raises(ValueError, match=r"has input size 3 and hidden size 2, where the stack on \w+ needs 2 and 2"):
        fastcells.load_keras([gru, gru])
    lower = changed("LSTM", return_sequences=False)
    with pytest.raises(ValueError, match="return_sequences=False"):
        fastcells.load_keras([lower, lstm])


def test_time_major_of_keras_2() -> None:
    assert not fastcells.load_keras(changed("GRU", time_major=True)).batch_first
    with pytest.raises(ValueError, match="the layers differ in time_major"):
        fastcells.load_keras([changed("GRU", time_major=True), layers_of("stack-LSTM")[1]])


def test_a_configuration_of_another_layer() -> None:
    for name, other in (("GRU", "Bidirectional-GRU"), ("Bidirectional-GRU", "GRU")):
        arrays = layers_of(name)[0].get_weights()
        with pytest.raises(ValueError, match=r"the configuration is not that of [12] direction"):
            fastcells.load_keras(arrays, layers_of(other)[0].get_config())


def test_dropout_warns_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    layer = changed("GRU", recurrent_dropout=0.3)
    for given in (layer, [layer]):
        with pytest.warns(UserWarning, match="recurrent_dropout=0.3, of training, is not carried over") as caught:
            fastcells.load_keras(given)
        assert caught[0].filename == __file__
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_loaded_can_be_trained_and_owns_its_memory() -> None:
    arrays = [ARRAY(w) for w in CASES["LSTM"]["layers"][0]["weights"]]
    loaded = fastcells.load_keras(arrays)
    assert all(p.is_contiguous() and p.requires_grad and p.is_leaf for p in loaded.parameters())
    assert list(loaded.state_dict()) == list(fastcells.LSTM(3, 2).state_dict())
    kept = [array.copy() for array in arrays]
    loaded(tensors(CASES["LSTM"]["x"]))[0].sum().backward()
    torch.optim.SGD(loaded.parameters(), 1.0).step()
    assert all((a == k).all() for a, k in zip(arrays, kept, strict=True))
