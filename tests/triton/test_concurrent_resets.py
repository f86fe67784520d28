"""Steps that start from zeros in the split sequence kernels, whose rows then wait for nobody's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastcells.kernels.triton import launch_split
from tests.support.edited_kernels import edited
from tests.support.resets import FAULTS, some_resets
from tests.support.shapes import CELLS, EACH_CELL, Case
from tests.support.split_programs import EACH_EXCHANGE, excess, split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU; test_split_gpu.py runs there"),
]

RNN_TANH, RNN_RELU, GRU, RESET_BEFORE, LSTM = CELLS


@pytest.mark.parametrize("seed", [0, 1])
@EACH_EXCHANGE
@EACH_CELL
def test_every_cell(case: Case, name: str, seed: int) -> None:
    """As in test_concurrent.py; the second time with lengths and ids, in reverse."""
    options: dict[str, Any] = {"reverse": seed == 1, "ids": seed == 1, "resets": some_resets(4, 20)}
    if seed == 1:
        options["lengths"] = torch.randint(5, (20,))
    with split(name, 2 - seed, seed=seed):
        assert excess(case, 4, 20, 43 if seed == 1 else 40, **options) <= 0


@EACH_EXCHANGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_16_bit(dtype: torch.dtype, name: str) -> None:
    """In words of two elements, and of one."""
    with split(name, columns=16, seed=2):
        assert excess(LSTM, 3, 5, 36 if dtype == torch.float16 else 37, dtype, resets=some_resets(3, 5)) <= 0


@pytest.mark.parametrize(("file", "old", "new"), [f for f in FAULTS if f[0].startswith("split_")])
def test_a_fault_is_noticed(file: str, old: str, new: str, tmp_path: Path) -> None:
    resets = some_resets(6, 5)
    with edited(launch_split, file, old, new, tmp_path), split("poll"):
        assert max(excess(case, 6, 5, 40, resets=resets) for case in (LSTM, RESET_BEFORE)) > 1e-3
