"""Steps that start from zeros, and what can be wrong with them in the text of the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def some_resets(T: int, B: int) -> Tensor:
    """bool [T, B]: at chance, and one row's first step, another's last one, and every row at once."""
    resets = torch.rand(T, B) < 0.25
    resets[0, 0], resets[-1, -1], resets[T // 2] = True, True, True
    return resets


# file, text, the text in its place
FAULTS = [
    # The flag of another step.
    ("sequence.py", "resets_ptr, (t - 1 if REVERSE else t + 1) * batch", "resets_ptr, t * batch"),
    ("sequence.py", "resets_ptr, (t + 1 if REVERSE else t - 1) * batch", "resets_ptr, t * batch"),
    ("split_forward.py", "resets_ptr, (zero + (t - 1 if REVERSE else t + 1)) * B", "resets_ptr, (zero + t) * B"),
    ("split_backward.py", "resets_ptr, (zero + (t + 1 if REVERSE else t - 1)) * B", "resets_ptr, (zero + t) * B"),
    ("step_backward.py", "resets_ptr, later * batch", "resets_ptr, (later - 1) * batch"),
    # Of another row.
    (
        "sequence.py",
        "t + 1) * batch + first_row, row, more)\n        more",
        "t + 1) * batch, row * 0, more)\n        more",
    ),
    (
        "split_forward.py",
        "t + 1)) * B + first_row, row, more)\n            more",
        "t + 1)) * B, row * 0, more)\n            more",
    ),
    ("split_backward.py", "t - 1)) * B + first_row, row, more)", "t - 1)) * B, row * 0, more)"),
    # The product reads the state before the reset.
    ("sequence.py", "tl.where(mask, before[0], 0.0)", "tl.where(mask, state[0], 0.0)"),
    ("split_forward.py", "row_mask & (starts == 0)", "row_mask"),
    ("step.py", "read_rows = row_mask & (starts == 0)\n    products", "products"),
    # The update does: of an LSTM, c.
    ("sequence.py", "FORWARD(x, h, before + extra)", "FORWARD(x, h, state + extra)"),
    ("split_forward.py", "FORWARD(x, h, before + extra)", "FORWARD(x, h, state + extra)"),
    ("step.py", "FORWARD(x, h, before_step + extra)", "FORWARD(x, h, state + extra)"),
    # The second product's operand is of the state before the reset.
    ("sequence.py", "RESET_HIDDEN(x, h, before + extra)", "RESET_HIDDEN(x, h, state + extra)"),
    ("split_forward.py", "RESET_HIDDEN(x, h, before + extra)", "RESET_HIDDEN(x, h, state + extra)"),
    # The backward reads the state before the reset.
    ("sequence.py", "zero_started(starts, prev, STATES)", "prev"),
    ("split_backward.py", "zero_started(starts, prev, STATES)", "prev"),
    ("step_backward.py", "prev = zero_started(starts, prev, STATES)", "pass"),
    # A gradient is handed on to the steps before it.
    ("sequence.py", "zero_started(starts, d_prev, STATES)", "d_prev"),
    ("sequence.py", "tl.where(starts == 0, through, 0.0)", "through"),
    ("split_backward.py", "zero_started(starts, d_prev, STATES)", "d_prev"),
    ("split_backward.py", "tl.where(starts == 0, total, 0.0)", "total"),
    ("step_backward.py", "d_prev = zero_started(starts, d_prev, STATES)", "pass"),
    ("step_backward.py", "row_mask & (load_resets(", "row_mask | (load_resets("),
]
