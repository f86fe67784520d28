"""Fused recurrent layers and cells for PyTorch: `from fastcells import GRU` in place of `from torch.nn import GRU`."""

import logging

from fastcells import functional, init, reference
from fastcells.backends.base import Choice
from fastcells.call_options import Masks
from fastcells.cells import GRUCell, LSTMCell, RNNCell
from fastcells.convert import convert, from_torch, to_torch
from fastcells.defined.define import define
from fastcells.dispatch import explain
from fastcells.errors import CannotRun, DefinitionError, KernelFault
from fastcells.layer_norm import LayerNormGRU, LayerNormLSTM
from fastcells.layers import GRU, LSTM, RNN
from fastcells.tuning.tune import Tuned, tune
from fastcells.weights.load_flax import load_flax
from fastcells.weights.load_keras import load_keras
from fastcells.weights.load_onnx import load_onnx
from fastcells.weights.to_onnx import to_onnx

logging.getLogger("fastcells").addHandler(logging.NullHandler())  # nothing is printed unless the program asks for it

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CannotRun",
    "Choice",
    "DefinitionError",
    "GRUCell",
    "KernelFault",
    "LSTMCell",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Masks",
    "RNNCell",
    "Tuned",
    "convert",
    "define",
    "explain",
    "from_torch",
    "functional",
    "init",
    "load_flax",
    "load_keras",
    "load_onnx",
    "reference",
    "to_onnx",
    "to_torch",
    "tune",
]
