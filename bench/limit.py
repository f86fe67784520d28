"""How fast a case would be if all but its matmuls were free: the matmuls alone, as torch.mm runs them here.

A yardstick and no bound: oneDNN, behind torch.nn.LSTM, multiplies faster than torch.mm on some processors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import Case

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def matmuls(case: Case, device: torch.device) -> Callable[[], None] | None:
    """Calls the matmuls of one run of the case: input projections and weight gradients over all steps at once, the
    recurrence step by step, and the output layer of a language model. Token ids need no input projection.

    None for packed sequences, whose matmuls shrink from step to step, and on a GPU, where a step takes its time from
    the exchange between multiprocessors: bench.roofline has a model of that.
    """
    if case.packed or device.type != "cpu":
        return None
    products: list[tuple[int, Tensor, Tensor, Tensor]] = []
    dtype: torch.dtype = getattr(torch, case.dtype)
    rows, directions = GATES[case.cell] * case.H, 1 + case.bidirectional
    T, B = case.T, case.B
    forward = case.mode != "backward"
    backward = case.mode in ("backward", "forward+backward", "training step")

    def multiply(times: int, m: int, k: int, n: int) -> None:
        a, b, out = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n), (m, n)))
        products.append((times, a, b, out))

    steps = T if case.mode == "generate" else 1  # a language model that writes projects one character at a time
    for layer in range(case.layers):
        for _ in range(directions):
            width = case.I if layer == 0 else case.H * directions
            projected = layer > 0 or not case.ids
            if forward:
                if projected:
                    multiply(steps, T * B // steps, width, rows)
                multiply(T, B, case.H, rows)
            if backward:
                if projected:
                    multiply(1, T * B, rows, width)
                    multiply(1, rows, T * B, width)
                multiply(T, B, rows, case.H)
                multiply(1, rows, T * B, case.H)
    if case.mode in ("training step", "generate"):
        width = case.H * directions
        multiply(steps, T * B // steps, width, case.I)
        if backward:
            multiply(1, T * B, case.I, width)
            multiply(1, case.I, T * B, width)

    def run() -> None:
        for times, a, b, out in products:
            for _ in range(times):
                torch.mm(a, b, out=out)

    return run
