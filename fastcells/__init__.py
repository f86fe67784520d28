"""Fused recurrent layers and cells for PyTorch: `from fastcells import GRU` in place of `from torch.nn import GRU`."""

from fastcells import functional, reference
from fastcells.backends.base import Choice
from fastcells.cells import GRUCell, LSTMCell, RNNCell
from fastcells.convert import convert, from_torch, to_torch
from fastcells.dispatch import explain
from fastcells.errors import CannotRun, KernelFault
from fastcells.layers import GRU, LSTM, RNN

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CannotRun",
    "Choice",
    "GRUCell",
    "KernelFault",
    "LSTMCell",
    "RNNCell",
    "convert",
    "explain",
    "from_torch",
    "functional",
    "reference",
    "to_torch",
]
