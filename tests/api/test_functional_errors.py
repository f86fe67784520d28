"""Bad calls of the functional forms: what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import functional

GRU_ARGS = {"x": (9, 5, 4), "h0": (5, 7), "w_ih": (21, 4), "w_hh": (21, 7), "b_ih": (21,), "b_hh": (21,)}
LSTM_ARGS = {"x": (9, 5, 4), "h0": (5, 7), "c0": (5, 7), "w_ih": (28, 4), "w_hh": (28, 7)}
PROJ_ARGS = {**LSTM_ARGS, "h0": (5, 3), "w_hh": (28, 3), "w_hr": (3, 7)}
BAD_SHAPES = [
    ("gru", GRU_ARGS, {"x": (9, 4)}, r"3 dimensions, got 2"),
    ("gru", GRU_ARGS, {"x": (0, 5, 4)}, r"\[0, 5, 4\]"),
    ("gru", GRU_ARGS, {"x": (9, 5, 3)}, r"\[9, 5, 3\].*\[21, 4\]"),
    ("gru", GRU_ARGS, {"h0": (4, 7)}, r"\[5, 7\], got \[4, 7\]"),
    ("gru", GRU_ARGS, {"h0": (1, 5, 7)}, r"\[5, 7\], got \[1, 5, 7\]"),
    ("gru", GRU_ARGS, {"w_ih": (20, 4)}, r"\[20, 4\].*\[21, 7\]"),
    ("gru", GRU_ARGS, {"w_ih": (21,)}, r"\[21\]"),
    ("gru", GRU_ARGS, {"w_hh": (21, 6), "h0": (5, 6)}, r"\[21, 6\]"),
    ("gru", GRU_ARGS, {"w_hh": (21, 8), "h0": (5, 8)}, r"\[21, 8\]"),
    ("gru", GRU_ARGS, {"w_hh": (21,)}, r"\[21\]"),
    ("gru", GRU_ARGS, {"b_ih": (20,)}, r"b_ih must be \[21\], got \[20\]"),
    ("gru", GRU_ARGS, {"b_hh": (1, 21)}, r"b_hh must be \[21\], got \[1, 21\]"),
    ("lstm", LSTM_ARGS, {"c0": (5, 6)}, r"c0 .*\[5, 7\], got \[5, 6\]"),
    ("lstm", LSTM_ARGS, {"w_hh": (28, 8), "h0": (5, 8), "c0": (5, 8)}, r"\[28, 8\]"),
    ("lstm", PROJ_ARGS, {"w_hr": (3, 6), "c0": (5, 6)}, r"\[3, 6\]"),
    ("lstm", PROJ_ARGS, {"w_hr": (2, 7)}, r"\[2, 7\]"),
]
LENGTHS_OR_NOT = pytest.mark.parametrize("lengths", [None, torch.tensor([9, 1, 2, 0, 3])], ids=["even", "ragged"])


@LENGTHS_OR_NOT
@pytest.mark.parametrize(
    ("form", "good", "bad", "message"),
    [pytest.param(*row, id="-".join(f"{name}={list(shape)}" for name, shape in row[2].items())) for row in BAD_SHAPES],
)
def test_wrong_shapes(form: str, good: dict[str, Any], bad: dict[str, Any], message: str, lengths: Tensor) -> None:
    run = getattr(functional, form)
    run(**{name: torch.randn(shape) for name, shape in good.items()}, lengths=lengths)
    with pytest.raises(RuntimeError, match=message):
        run(**{name: torch.randn(shape) for name, shape in {**good, **bad}.items()}, lengths=lengths)


@LENGTHS_OR_NOT
@pytest.mark.parametrize("name", LSTM_ARGS)
def test_wrong_dtype(name: str, lengths: Tensor | None) -> None:
    args = {n: torch.randn(shape, dtype=torch.float64) for n, shape in LSTM_ARGS.items()}
    args[name] = args[name].float()
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)dtype|data type|type.*(float|double)"):
        functional.lstm(**args, lengths=lengths)


BAD_OPTIONS = [
    ({"lengths": torch.ones(4, dtype=torch.long)}, RuntimeError, r"\[5\], got torch.int64 \[4\]"),
    ({"lengths": torch.ones(5)}, RuntimeError, "integer .*torch.float32"),
    ({"impl": "nonsense"}, ValueError, "'auto', 'torch'.*'nonsense'"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD_OPTIONS, ids=["lengths-shape", "lengths-dtype", "impl"])
def test_wrong_options(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        functional.gru(**{name: torch.randn(shape) for name, shape in GRU_ARGS.items()}, **options)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn(torch.randn(2, 2, 2), None, torch.randn(3, 2), torch.randn(3, 3), nonlinearity="sin")
