"""Defined cells by the Gluon kernels, on the hardware that they are for; test_rules.py has what needs none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.defined_cases import CASES
from tests.support.split_programs import arguments, largest_excess, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory", "strict_float32")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ["JANET", "CoupledGateLSTM", "MinimalGatedUnit", "TwinGRU"])
@pytest.mark.parametrize("impl", ["gluon", "triton"])
def test_accuracy(name: str, dtype: torch.dtype, impl: str) -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("compute capability 9.0 is needed")
    T, B, H, case = 9, 33, 256, CASES[name]
    with torch.device("cuda"):
        options: dict[str, Any] = {"lengths": torch.randint(T + 1, (B,)), "resets": torch.rand(T, B) < 0.2}
        args = arguments(case, T, B, H, dtype)
        d = [torch.randn(size).to(dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
        ours = run(case, args, dtype, d, impl=impl, **options)
        assert largest_excess(case, args, ours, d, **options) <= 0
