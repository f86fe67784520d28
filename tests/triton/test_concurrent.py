"""The split sequence kernels: programs that exchange the state each step, each in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastcells.backends.triton.operators import recurrence_forward
from fastcells.kernels.triton import plan
from tests.support.concurrent_programs import concurrent_programs
from tests.support.shapes import CELLS, EACH_CELL, Case
from tests.support.split_programs import BLOCKS, EACH_EXCHANGE, excess, split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU; test_triton.py runs there"),
]

RNN_TANH, RNN_RELU, GRU, RESET_BEFORE, LSTM = CELLS


@pytest.mark.parametrize("seed", [0, 1])
@EACH_EXCHANGE
@EACH_CELL
def test_every_cell(case: Case, name: str, seed: int) -> None:
    """Two column tiles, each gathered in two parts, and two batch tiles at once or in turn; B and H fill none.

    The rows of the second seed are not aligned, and H is a constant of the kernel.
    """
    groups = 2 - seed
    options: dict[str, Any] = {"reverse": seed == 1}
    if seed == 1:
        options["lengths"] = torch.randint(4, (20,))
    with split(name, groups, seed=seed) as (forward, backward):
        assert excess(case, 3, 20, 43 if seed == 1 else 40, **options) <= 0
        assert forward.programs == backward.programs == [2 * groups]


@EACH_EXCHANGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_16_bit(dtype: torch.dtype, name: str) -> None:
    with split(name, columns=16, seed=2):
        assert excess(LSTM, 3, 5, 37, dtype) <= 0


@pytest.mark.parametrize("form", plan.FORMS, ids=lambda form: f"{form.batch}x{form.columns}")
@pytest.mark.parametrize(
    ("case", "dtype"), [(RESET_BEFORE, torch.float32), (LSTM, torch.bfloat16)], ids=["f32", "bf16"]
)
def test_every_form_of_a_program(case: Case, dtype: torch.dtype, form: plan.Form) -> None:
    blocks = replace(BLOCKS, batch=form.batch, hidden=form.columns, warps=form.warps)
    with pytest.MonkeyPatch.context() as patch, concurrent_programs(seed=form.columns) as (forward, _):
        patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(blocks, 2, "poll", polled=1 + form.warps % 3))
        assert excess(case, 3, 18, 36, dtype, ids=form.warps == 2, lengths=torch.randint(4, (18,))) <= 0
        assert forward.programs == [2 * -(-36 // form.columns)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@EACH_EXCHANGE
def test_more_batch_tiles_than_groups(name: str, seed: int) -> None:
    """One launch whatever B: of 5 tiles the first group does 0, 2 and 4, the second 1 and 3; with seed 0 one does all.

    A single step waits for nobody, so that a program may be several tiles ahead of another.
    """
    case, groups, T = (RESET_BEFORE, LSTM, GRU)[seed], min(seed + 1, 2), (2, 3, 1)[seed]
    with split(name, groups, columns=16, seed=seed) as (forward, backward):
        assert excess(case, T, 69, 24, ids=seed == 0) <= 0
        assert forward.programs == backward.programs == [2 * groups]


def test_the_mailboxes_are_outputs_that_an_operator_may_return() -> None:
    """h of a cell with a second product is half of a tensor."""
    rows = 3 * 24
    x, h0, w = torch.randn(2, 5, rows), torch.randn(5, 24), torch.randn(rows, 24)
    arguments = (x, h0, None, w, None, None, "gru_reset_before", "split", False, True)
    with split("poll"):
        torch.library.opcheck(recurrence_forward, arguments, test_utils=("test_schema", "test_faketensor"))


# Broken exchanges, which show that the tests above can fail. `Problem` runs one way at a time, so that the backward
# is judged after a forward that was right.
