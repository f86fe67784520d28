"""When a GPU's `"auto"` takes the Gluon kernels before a trial has timed them there: what was measured on an H200.

bench/results/gpu/device.csv: three cells, B 1 to 128, H 64 to 1024, T=128, bfloat16 and float32 with TF32, in CUDA
graphs, beside cuDNN in the same run.
"""

from __future__ import annotations

from fastcells.backends.triton.policy import FEWEST_STEPS, NOT_FUSED, SMALL

CAPABILITY = 90  # of the card that was measured
LARGEST = 1024  # H that was measured, with up to MANY_ROWS
MANY_ROWS, WIDE = 128, 512  # more rows than 32 were measured with up to WIDE columns
# Up to this H a single program of plain Triton's holds the weights of 16 bits, and is faster than several.
ONE_PROGRAM = {"gru": 64, "rnn_tanh": 128, "rnn_relu": 128}


def advantage(cell: str, steps: int, batch: int, H: int, dtype: str, *, aten: bool) -> str | None:
    """Why the Gluon kernels are the fastest for a call on a card of CAPABILITY, or None where they are not.

    aten: whether the alternative is cuDNN; otherwise it is a loop over torch's operators.
    """
    if steps < FEWEST_STEPS or H > LARGEST or batch > MANY_ROWS or (batch > 32 and H > WIDE):
        return None
    if not aten:
        return NOT_FUSED
    if dtype == "bfloat16" and ONE_PROGRAM.get(cell, 0) < H:
        return "1.4 to 6.8 times as fast as cuDNN on an H200, in CUDA graphs"
    if dtype == "float32" and SMALL[cell][0] < H:  # what is smaller cuDNN keeps on the chip, as fast as ours or faster
        return "1.3 to 9 times as fast as cuDNN on an H200, in CUDA graphs"
    return None
