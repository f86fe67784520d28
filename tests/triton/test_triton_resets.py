"""Steps that start from zeros, in the kernels that are launched by themselves: sequence and step.

Three-way, as test_triton.py; the split kernels' are in test_concurrent_resets.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastcells.kernels.triton import launch_sequence, launch_step
from tests.support.accuracy import error
from tests.support.edited_kernels import edited
from tests.support.resets import FAULTS, some_resets
from tests.support.shapes import CELLS, EACH_CELL, Case, in_turn, name_of
from tests.support.split_programs import arguments, largest_excess, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory", "strict_float32")]

SHAPES = [(1, 3, 7), (2, 5, 24), (5, 17, 7), (6, 3, 40)]  # T, B, H
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
RESET_BEFORE, LSTM = CELLS[3:]
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])


@pytest.fixture(autouse=True)
def on_the_device(device: torch.device) -> Iterator[None]:
    """Every tensor that a test makes."""
    with device:
        yield


def excess(case: Case, shape: tuple[int, int, int], dtype: torch.dtype, impl: str, **options: Any) -> float:
    """By how much outputs and gradients are further from float64 than they may be."""
    T, B, H = shape
    args = arguments(case, T, B, H, dtype, ids=options.pop("ids", False))
    d = [torch.randn(size).to(dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    return largest_excess(case, args, run(case, args, dtype, d, impl=impl, **options), d, **options)


@pytest.mark.parametrize(
    ("case", "impl", "shape", "dtype"), in_turn(CELLS, ["triton", "triton-step"], SHAPES, [*DTYPES]), ids=name_of
)
def test_accuracy(case: Case, shape: tuple[int, int, int], dtype: str, impl: str) -> None:
    """Dense and ids, even and ragged, both directions in turn: forward and every gradient."""
    T, B, _ = shape
    index = SHAPES.index(shape) + list(DTYPES).index(dtype)
    options: dict[str, Any] = {
        "reverse": index % 2 == 1,
        "ids": SHAPES.index(shape) % 2 == 1,
        "resets": some_resets(T, B),
    }
    if index % 3 == 0:
        options["lengths"] = torch.randint(T + 1, (B,))
    assert excess(case, shape, DTYPES[dtype], impl, **options) <= 0


@EACH_IMPL
@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
@EACH_CELL
def test_nothing_of_an_earlier_episode_is_left(case: Case, reverse: bool, impl: str) -> None:
    """Neither an infinity nor a NaN of the steps before a reset, nor a gradient's of the steps after it."""
    T, B, H = 5, 3, 7
    args, resets = arguments(case, T, B, H), torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    early = slice(3, 5) if reverse else slice(0, 2)  # steps that are taken before step 2
    late = [t for t in range(T) if t not in range(T)[early]]
    d = [torch.randn(T, B, H), *(torch.randn(B, H) for _ in range(case.states))]
    clean = run(case, args, torch.float32, d, impl=impl, reverse=reverse, resets=resets)
    dirty = [args[0].clone(), *args[1:]]
    dirty[0][early, 1], dirty[1] = torch.nan, torch.full_like(args[1], torch.inf)
    out, *last = run(case, dirty, torch.float32, d, impl=impl, reverse=reverse, resets=resets)[: 1 + case.states]
    assert torch.equal(out[late], clean[0][late])
    assert all(map(torch.equal, last, clean[1 : 1 + case.states]))
    wild = [d[0].clone(), *(torch.full_like(s, torch.nan) for s in d[1:])]
    wild[0][late] = torch.nan
    gradients = run(case, args, torch.float32, wild, impl=impl, reverse=reverse, resets=resets)
    d_x, expected = gradients[1 + case.states], clean[1 + case.states]
    assert torch.equal(d_x[early], expected[early]) and d_x[late].isnan().any()
    for a, b in zip(gradients[2 + case.states :][: case.states], clean[2 + case.states :], strict=False):
        assert error(a, b) == 0  # of the initial state


@EACH_IMPL
@pytest.mark.parametrize("layout", ["slice", "transposed", "expanded"])
def test_layout_of_memory_is_free(layout: str, impl: str) -> None:
    T, B, H = 4, 6, 7
    args, d = arguments(LSTM, T, B, H), [torch.randn(T, B, H), torch.randn(B, H), torch.randn(B, H)]
    resets = some_resets(T, B)
    if layout == "slice":  # an address that 16 does not divide
        strided = torch.cat([torch.ones(1, B, dtype=torch.bool), resets])[1:]
    elif layout == "transposed":
        strided = resets.t().contiguous().t()
    else:
        strided = resets[:, :1].expand(T, B)
        resets = strided.contiguous()
    a, b = (run(LSTM, args, torch.float32, d, impl=impl, resets=r) for r in (resets, strided))
    assert all(map(torch.equal, a, b))


LAUNCHERS: dict[str, ModuleType] = {"sequence.py": launch_sequence}
LAUNCHERS |= {"step.py": launch_step, "step_backward.py": launch_step}


@pytest.mark.parametrize(("file", "old", "new"), [f for f in FAULTS if f[0] in LAUNCHERS])
def test_a_fault_is_noticed(file: str, old: str, new: str, tmp_path: Path) -> None:
    impl = "triton" if file == "sequence.py" else "triton-step"
    options: dict[str, Any] = {"resets": some_resets(6, 5)}
    with edited(LAUNCHERS[file], file, old, new, tmp_path):
        found = [excess(case, (6, 5, 7), torch.float32, impl, **options) for case in (LSTM, RESET_BEFORE)]
    assert max(found) > 1e-3
