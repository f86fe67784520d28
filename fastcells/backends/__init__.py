"""The ways to run a cell, by the names that `impl=` takes; another one is a folder here and its line below."""

from fastcells.backends.base import Backend
from fastcells.backends.cpu.backend import CPU
from fastcells.backends.gluon.backend import GLUON
from fastcells.backends.torch.backend import TORCH
from fastcells.backends.triton.backend import TRITON, TRITON_STEP

# "auto" takes the first that has an advantage for a call, and torch's where none has.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (TORCH, CPU, GLUON, TRITON, TRITON_STEP)}
