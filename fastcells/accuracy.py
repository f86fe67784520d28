"""When an implementation counts as right: its error against float64, beside that of torch's own in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor

TWICE = 2.0  # the error that ours may have, over torch's
# In 16 bits and TF32. A relu's slope jumps at 0: rounding puts a few units on its other side, others each time.
ROUGH_KINKED = 8.0


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, relative to that of `exact` where this is above 1. NaN is infinite."""
    return _rms(actual.double() - exact) / max(1.0, _rms(exact))


def allowed_error(
    baseline: float, kinked: bool, dtype: torch.dtype, device: torch.device, *, roundings: float = 1.0
) -> float:
    """What `relative_error` may be, where torch's own operators have the error `baseline`: twice that and a rounding.

    kinked: as in `CellSpec`. roundings: more than one where so few numbers are compared that torch may have been lucky.
    """
    # On a GPU torch's RNNs multiply float32 in TF32 unless told otherwise, and so do ours; a reference may not.
    tf32 = device.type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    rounding = 2.0**-10 if tf32 else torch.finfo(dtype).eps
    rough = dtype != torch.float32 or tf32
    return (ROUGH_KINKED if kinked and rough else TWICE) * baseline + roundings * rounding


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().nan_to_num(nan=float("inf")).item() if x.numel() else 0.0
