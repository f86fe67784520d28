"""Compile the Gluon kernels as their launchers would, on a machine that need not have a GPU.

In a process where TRITON_INTERPRET is not set: nothing is compiled where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
import triton

from bench.cases.compile_cases import DEVICES, DTYPES
from bench.compile import cuobjdump, resources
from bench.measure import sass
from bench.measure.launched import compile_launch
from fastcells.kernels.gluon import launch
from fastcells.kernels.gluon.plan import Resident, resident_plan
from fastcells.kernels.triton.launch import BackwardPass, ForwardPass, StepInput
from fastcells.kernels.triton.rules import RULES

T = 7


class Recorder:
    """Stands in a kernel's place, and keeps the arguments of its last launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.record

    def record(self, **arguments: Any) -> None:
        self.arguments = arguments


def launches(
    rule: str,
    dtype: str,
    H: int,
    B: int,
    target: int,
    blocks: list[int] | None,
    directions: int = 1,
    resets: bool = False,
) -> list[Recorder]:
    """What forward and backward launch, with every option of a step that changes the kernels' loads but resets."""
    torch_dtype, precision = DTYPES[dtype]
    spec = RULES[rule].spec
    plans = []
    for backward in (False, True):
        options: dict[str, Any] = {"precision": precision, "backward": backward, "directions": directions}
        options["two_products"] = rule == "gru_reset_before"
        plan = resident_plan(H, B, spec.num_gates, torch_dtype.itemsize, DEVICES[target], **options)
        plan = Resident(*blocks, 1, "test") if blocks else plan
        assert isinstance(plan, Resident), plan
        plans.append(plan)

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty((2, *shape) if directions == 2 else shape, dtype=torch_dtype, device="meta")

    rows = spec.num_gates * H
    state, w = tuple(meta(B, H) for _ in spec.states), meta(rows, H)
    given = (RULES[rule], state, w, torch.empty(B, dtype=torch.int32, device="meta"), False, precision)
    flags = torch.empty(T, B, dtype=torch.uint8, device="meta") if resets else None
    recorders = [Recorder(launch.forward_kernel), Recorder(launch.backward_kernel)]
    forward = ForwardPass(*given, StepInput(meta(T, B, rows)), meta(rows), True, resets=flags)
    with mock.patch.multiple(launch, forward_kernel=recorders[0], backward_kernel=recorders[1]):
        out = launch.gluon_forward(forward, plans[0])
        launch.gluon_backward(BackwardPass(*given, out._replace(last=()), meta(T, B, H), state, resets=flags), plans[1])
    return recorders


def figures(kernel: Any, arguments: dict[str, Any], target: int) -> dict[str, object]:
    """What the machine code of the loop over time holds, and what the kernel takes."""
    binary = compile_launch(kernel, arguments, target)
    registers, stack = resources(binary)
    code = sass.decode(cuobjdump(binary))
    found = sass.main_loop(code)
    assert found is not None, "there is no loop"
    loop = Counter(instruction.base for instruction in code[found[0] : found[1] + 1])
    matmuls, inner = arguments["GATES"] * arguments["BLOCK_H"] // 16 * (arguments["BLOCK_B"] // 8), arguments["BLOCK_K"]
    size = arguments["w_ptr"].element_size()
    return {
        "kernel": kernel.__name__,
        "target": target,
        "triton": triton.__version__,
        "blocks": [arguments[name] for name in ("BLOCK_B", "BLOCK_H", "SPLIT", "BLOCK_K", "INNER")],
        "registers": registers,
        "stack": stack,
        "reloads": loop["LDL"],
        "spills": loop["STL"],
        "barriers": loop["BAR"],
        "matmuls": loop["HMMA"],
        "expected": matmuls
        * inner
        * arguments["INNER"]
        * size
        // 32
        * (3 if arguments["PRECISION"] == "tf32x3" else 1),
        "cooperative": binary.metadata.launch_cooperative_grid,
    }


def compiled(cases: Sequence[tuple[Any, ...]]) -> list[dict[str, object]]:
    """Figures of each kernel of each case.

    A case: rule, dtype, H, B, target, in place of the plan's own blocks others, how many directions a launch runs, 1 if
    not given, and whether steps may start from zeros.
    """
    return [figures(recorder.kernel, recorder.arguments, case[4]) for case in cases for recorder in launches(*case)]
