"""Bad arguments and bad calls: torch.nn's own errors, type and message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_map

import fastcells
from tests.support.layer_cases import (
    EACH,
    B,
    H,
    I,
    T,
    pair,
    some,
    some_hx,
)

BAD_ARGUMENTS = [
    {"dropout": 2}, {"dropout": -0.5}, {"dropout": True}, {"dropout": "0.5"}, {"hidden_size": 0}, {"input_size": -1},
    {"hidden_size": 7.0}, {"num_layers": 0}, {"bias": 1}, {"batch_first": 0}, {"proj_size": 7}, {"proj_size": -1},
    {"nonlinearity": "sin"}, {"nonsense": 1}, {"dtype": "float"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=lambda bad: "-".join(f"{k}={v!r}" for k, v in bad.items()))
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_same_constructor_errors(name: str, bad: dict[str, Any]) -> None:
    arguments = {"input_size": I, "hidden_size": H, **bad}
    with pytest.raises((ValueError, TypeError)) as expected:
        getattr(nn, name)(**arguments)
    with pytest.raises(expected.type) as caught:
        getattr(fastcells, name)(**arguments)
    assert str(caught.value).replace("fastcells.layers.", "") == str(expected.value).replace(
        "torch.nn.modules.rnn.", ""
    )


def test_own_constructor_errors() -> None:
    for cls in (fastcells.RNN, fastcells.GRU, fastcells.LSTM):
        with pytest.raises(ValueError, match=r"'auto', 'torch'.*'nonsense'"):
            cls(I, H, impl="nonsense")
    with pytest.raises(TypeError, match="reset_after should be of type bool, got: NoneType"):
        fastcells.GRU(I, H, reset_after=None)


Call = Callable[[nn.RNNBase], tuple[Any, Any]]
BAD_CALLS: dict[str, Call] = {
    "input-4D": lambda m: (some(1, T, B, I), None),
    "input-1D": lambda m: (some(I), None),
    "input-size": lambda m: (some(T, B, I + 1), None),
    "input-size-unbatched": lambda m: (some(T, I - 1), None),
    "input-dtype": lambda m: (some(T, B, I).float(), None),
    "input-dtype-and-size": lambda m: (some(T, B, I + 1).float(), None),
    "input-complex": lambda m: (some(T, B, I).to(torch.complex128), None),
    "input-bool": lambda m: (some(T, B, I) > 0, None),
    "no-steps": lambda m: (some(0, B, I), None),
    "hx-2D": lambda m: (some(T, B, I), some_hx(m)),
    "hx-3D": lambda m: (some(T, I), some_hx(m, B)),
    "hx-batch": lambda m: (some(T, B, I), some_hx(m, B + 1)),
    "hx-rows": lambda m: (some(T, B, I), tree_map(lambda s: s.repeat(2, 1, 1), some_hx(m, B))),
    "hx-size": lambda m: (some(T, B, I), tree_map(lambda s: s[..., 1:], some_hx(m, B))),
    "hx-dim-and-input-size": lambda m: (some(T, B, I + 1), some_hx(m)),
}
BAD_PACKED: dict[str, Call] = {
    "input-dtype": lambda m: (pack_sequence([some(T, I).float()]), some_hx(m, 1)),
    "hx-batch": lambda m: (pack_sequence([some(T, I)]), some_hx(m, 2)),
    "input-size": lambda m: (pack_sequence([some(T, I + 1)]), None),
    "input-3D": lambda m: (PackedSequence(some(T, 1, I), torch.ones(T, dtype=torch.long)), None),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
@EACH
def test_same_call_errors(kind: str, bad: str) -> None:
    theirs, ours = pair(kind)
    args = BAD_CALLS[bad](ours)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(*args)
    with pytest.raises(expected.type) as caught:
        ours(*args)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("bad", BAD_PACKED)
@EACH
def test_packed_call_errors(kind: str, bad: str) -> None:
    """torch's LSTM forgets these checks, and runs on; ours says what torch's GRU says."""
    theirs, ours = pair(kind)
    checking = nn.GRU(I, H).double() if kind.startswith("LSTM") else theirs
    args = BAD_PACKED[bad](checking)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        checking(*args)
    args = BAD_PACKED[bad](ours)
    with pytest.raises(expected.type) as caught:
        ours(*args)
    texts = [str(e.value).replace("hidden[0]", "hidden") for e in (caught, expected)]
    assert texts[0].split(" size (")[0] == texts[1].split(" size (")[0]


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_reset_before_call_errors(bad: str) -> None:
    """The same messages where another implementation runs."""
    theirs, ours = pair("GRU")
    ours.reset_after = False
    args = BAD_CALLS[bad](ours)
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(*args)
    with pytest.raises(expected.type) as caught:
        ours(*args)
    assert str(caught.value).startswith(str(expected.value))
