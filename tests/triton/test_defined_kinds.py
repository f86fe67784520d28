"""Defined cells with further parameters, more states than two, diagonal weights or heads, by the Triton kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcells.accuracy import ROUGH_KINKED, TWICE
from fastcells.kernels.triton.exchange import EXCHANGES
from fastcells.spec.recurrent import DIAGONAL
from tests.support.defined_cases import KINDS, DefinedCase
from tests.support.resets import some_resets
from tests.support.split_programs import arguments, largest_excess, run, split

pytestmark = pytest.mark.usefixtures("poisoned_memory", "strict_float32")

EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])
EACH_KIND = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)


def excess(
    case: DefinedCase, T: int, B: int, H: int, dtype: torch.dtype, device: torch.device, **options: Any
) -> float:
    """By how much outputs and gradients are further from float64 than they may be."""
    impl = options.pop("impl", "triton")
    args = [a.to(device) for a in arguments(case, T, B, H, dtype, ids=options.pop("ids", False))]
    d = [torch.randn(size).to(device, dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    times = ROUGH_KINKED if case.spec.kinked and dtype != torch.float32 else TWICE
    return largest_excess(case, args, run(case, args, dtype, d, impl=impl, **options), d, times=times, **options)


@EACH_IMPL
@EACH_KIND
def test_accuracy(case: DefinedCase, impl: str, device: torch.device) -> None:
    """Ragged, with lengths and resets, over two batch tiles."""
    if impl == "triton-step" and case.spec.recurrent is DIAGONAL:
        pytest.skip("it runs in one launch")
    options = {"lengths": torch.randint(6, (18,), device=device), "resets": some_resets(5, 18).to(device)}
    assert excess(case, 5, 18, 6, torch.float32, device, impl=impl, **options) <= 0


@EACH_KIND
def test_16_bit_on_ids_in_reverse(case: DefinedCase, device: torch.device) -> None:
    assert excess(case, 3, 5, 8, torch.bfloat16, device, ids=True, reverse=True) <= 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU")
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("name", ["PeepholeLSTM", "FourStates", "SLSTM/2"])
def test_split(name: str, exchange: str) -> None:
    options: dict[str, Any] = {"lengths": torch.randint(4, (20,)), "resets": some_resets(3, 20)}
    with split(exchange, 1, columns=16) as (forward, backward):
        assert excess(KINDS[name], 3, 20, 40 if "/" in name else 23, torch.float32, torch.device("cpu"), **options) <= 0
        assert forward.programs == backward.programs == [2 * (2 if "/" in name else 1)]
