"""What ONNX's operators GRU, LSTM and RNN share with one another, for the way in and the way out.

W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H] with the input's biases first. Gates: GRU z r h, LSTM i o f c.
`linear_before_reset=0`, ONNX's default, is the reset-before GRU. Source: ONNX's documentation of GRU-22, LSTM-22 and
RNN-22, unchanged since version 7 but for `layout` (14) and bfloat16 (22).
"""

from __future__ import annotations

import importlib
from typing import Any

TO_TORCH = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
FROM_TORCH = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
ACTIVATIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


def require(module: str, wanted_by: str) -> Any:
    """A module of the package onnx. ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{wanted_by} needs the package onnx: pip install 'fastcells[onnx]'") from error
