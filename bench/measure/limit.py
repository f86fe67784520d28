"""How fast a case would be if all but its matmuls were free: the matmuls alone, as fast as torch runs them here.

Each by torch.mm or by oneDNN, whichever is faster: MKL, behind torch.mm, takes twice as long on some processors, and
oneDNN is what torch.nn.LSTM uses. oneDNN's weights are packed beforehand, which is not timed. A yardstick and no
bound: every matmul is a call of its own from Python, so that a fused layer of small matmuls may well be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.measure.timing import calls_per_measurement, once

Product = Callable[[Tensor, Tensor], Callable[[], object]]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def by_mm(a: Tensor, b: Tensor) -> Callable[[], object]:
    """a @ b as torch.mm."""
    return partial(torch.mm, a, b, out=torch.empty(len(a), b.shape[1], dtype=a.dtype, device=a.device))


def by_onednn(a: Tensor, b: Tensor) -> Callable[[], object] | None:
    """a @ b as oneDNN's linear layer; None where torch or oneDNN has none for this dtype and processor."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(b.t().contiguous(), len(a))
        run = partial(torch.ops.mkldnn._linear_pointwise, a, weight, None, "none", [], "")
        run()
    except (RuntimeError, AttributeError):
        return None
    return run


def fastest(a: Tensor, b: Tensor) -> Callable[[], object]:
    """a @ b by the faster of the two."""
    found = [run for run in (by_mm(a, b), by_onednn(a, b)) if run is not None]
    inner = calls_per_measurement(found)
    return min(found, key=lambda run: min(once(run, inner) for _ in range(3)))


def matmuls(case: Case, device: torch.device, product: Product = fastest) -> Callable[[], None] | None:
    """Calls the matmuls of one run of the case: input projections and weight gradients over all steps at once, the
    recurrence step by step, and the output layer of a language model. Token ids need no input projection.

    None for packed sequences, whose matmuls shrink from step to step, and on a GPU, where a step takes its time from
    the exchange between multiprocessors: bench.measure.roofline has a model of that.
    """
    if case.packed or device.type != "cpu":
        return None
    products: list[tuple[int, Callable[[], object]]] = []
    dtype: torch.dtype = getattr(torch, case.dtype)
    rows, directions = GATES[case.cell] * case.H, 1 + case.bidirectional
    T, B = case.T, case.B
    forward = case.mode != "backward"
    backward = case.mode in ("backward", "forward+backward", "training step")

    def multiply(times: int, m: int, k: int, n: int) -> None:
        a, b = (torch.randn(shape, device=device, dtype=dtype) for shape in ((m, k), (k, n)))
        products.append((times, product(a, b)))

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
        for times, multiply_once in products:
            for _ in range(times):
                multiply_once()

    return run
