"""When a GPU's `"auto"` takes the Triton kernels before a trial has timed them there: where a model says that they win.

Modelled, not measured. Ours: the plan's cycles of a step, fitted to the machine code for sm_90. cuDNN: what is thought
of its algorithm that launches a few kernels each step. By its own rule it has better ones for small H, which leave no
such room, and for LSTMs and RNNs in float16: those calls stay with it until a trial says more.
"""

from __future__ import annotations

from fastcells.kernels.triton import plan

WINS_BY = 1.5  # the model's margin for its own errors
CLOCK = 1.7e3  # cycles a microsecond
# Microseconds of a step of cuDNN's, forward and backward, up to so many columns: estimates from published timings.
PER_STEP = ((512, (6.0, 9.0)), (1 << 30, (8.0, 12.0)))
# The largest H of its kernels that keep everything on the chip, forward and backward.
SMALL = {"gru": (192, 128), "lstm": (192, 128), "rnn_tanh": (384, 256), "rnn_relu": (384, 256)}
PROVEN = (80, 90, 100)  # compute capabilities for which the kernels were compiled and executed by our own machine
NOT_FUSED = "one launch instead of a dozen each step, torch having no fused recurrence for this case"
FEWEST_STEPS = 8  # fewer do not pay for what a launch of ours costs the host


def advantage(
    cell: str, steps: int, H: int, dtype: str, forward: plan.Plan, backward: plan.Plan | None, *, aten: bool
) -> str | None:
    """Why Triton is thought to win by WINS_BY or more, or None.

    backward: its plan, if one follows. aten: whether the alternative is cuDNN; otherwise it is a loop over torch's
    operators, which launches a dozen kernels each step.
    """
    if steps < FEWEST_STEPS:
        return None
    if not aten:
        return f"{NOT_FUSED}; not measured"
    if dtype == "float16" and cell in ("lstm", "rnn_tanh", "rnn_relu"):
        return None
    ours = theirs = 0.0
    for backwards, found in enumerate((forward, backward)):
        if found is None:
            continue
        if not isinstance(found, plan.Split) or SMALL.get(cell, (0, 0))[backwards] >= H:
            return None
        ours += found.cycles / CLOCK
        theirs += next(each for largest, each in PER_STEP if largest >= H)[backwards]
    if theirs < WINS_BY * ours:
        return None
    return f"a model gives it {ours:.1f} us a step and cuDNN {theirs:.1f}; not measured on this device"
