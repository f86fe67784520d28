"""When a GPU's `"auto"` takes the Gluon kernels before a trial has timed them there: what was measured on an H200.

bench/results/gpu/h200-device.csv: three cells, B 1 to 128, H 64 to 1024, T=128, in CUDA graphs, beside cuDNN in the
same run. What cuDNN keeps on the chip, small layers in float32 and float16, it does as fast as our kernels or faster.
"""

from __future__ import annotations

from fastcells.backends.triton.policy import FEWEST_STEPS, NOT_FUSED

CAPABILITY = 90  # of the card that was measured
LARGEST = 1024  # H that was measured, with up to MANY_ROWS
MANY_ROWS, WIDE = 128, 512  # more rows than 32 were measured with up to WIDE columns
# By format and cell the sizes H, from and to, at which ours were faster, and by how much. Up to the size before the
# first in bfloat16, a single program of plain Triton's holds the weights, and is faster than several. "tf32x3" is
# float32 without TF32. Left out is what was faster in a CUDA graph, but slower than cuDNN's where Python called it.
FASTER = {
    "bfloat16": ({"gru": (65, 1024), "lstm": (1, 1024), "rnn": (129, 1024)}, "1.5 to 7"),
    "float16": ({"gru": (128, 768)}, "2 to 5.2"),
    "tf32": ({"gru": (192, 1024), "lstm": (128, 1024)}, "1.4 to 7.1"),
    "tf32x3": ({"gru": (256, 256), "lstm": (256, 256)}, "4.1 to 4.9"),
}
NOWHERE = (1, 0)


def advantage(cell: str, steps: int, batch: int, H: int, number_format: str, *, aten: bool) -> str | None:
    """Why the Gluon kernels are the fastest for a call on a card of CAPABILITY, or None where they are not.

    number_format: of FASTER. aten: whether the alternative is cuDNN; otherwise it is a loop over torch's operators.
    """
    if steps < FEWEST_STEPS or H > LARGEST or batch > MANY_ROWS or (batch > 32 and H > WIDE):
        return None
    if not aten:
        return NOT_FUSED
    if number_format not in FASTER:
        return None
    sizes, times = FASTER[number_format]
    first, last = sizes.get(cell.split("_")[0], NOWHERE)
    return f"{times} times as fast as cuDNN on an H200, in CUDA graphs" if first <= H <= last else None
