"""Defined cells in the split sequence kernels, each program in a process of its own; see test_concurrent.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.defined_cases import CASES
from tests.support.resets import some_resets
from tests.support.split_programs import EACH_EXCHANGE, excess, split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU"),
]


@pytest.mark.parametrize("seed", [0, 1])
@EACH_EXCHANGE
@pytest.mark.parametrize("cell", ["CoupledGateLSTM", "MinimalGatedUnit", "TwinGRU"])
def test_accuracy(cell: str, name: str, seed: int) -> None:
    """Two column tiles and two batch tiles, at once or in turn; the second time with all options, in reverse."""
    options: dict[str, Any] = {}
    if seed == 1:
        options = {"reverse": True, "ids": True, "lengths": torch.randint(4, (20,)), "resets": some_resets(3, 20)}
    with split(name, 2 - seed, seed=seed) as (forward, backward):
        assert excess(CASES[cell], 3, 20, 43 if seed == 1 else 40, **options) <= 0
        assert forward.programs == backward.programs == [2 * (2 - seed)]


@EACH_EXCHANGE
def test_16_bit(name: str) -> None:
    with split(name, columns=16, seed=2):
        assert excess(CASES["CoupledGateLSTM"], 3, 5, 37, torch.bfloat16) <= 0
