"""Which implementation runs, and the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastcells.autocast import autocast_dtype
from fastcells.kernels import plan

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IMPLEMENTATIONS = ("auto", "torch", "triton", "triton-step")


@dataclass(frozen=True)
class Choice:
    """What runs: `impl` as the user names it, `path` within it, and why, as text."""

    impl: str
    # Within "torch": "aten", ATen's fused recurrence, or "recurrence", ours. In Triton: "sequence", one program a batch
    # tile, "split", several that exchange the state, or "step".
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.impl} ({self.path}): {self.reason}"


ATEN = Choice("torch", "aten", "ATen's fused recurrence expresses this case")
RESET_BEFORE = Choice("torch", "recurrence", "ATen has no reset-before GRU")
TOKEN_IDS = Choice("torch", "recurrence", "token ids gather rows of W_ih^T, ATen would need the one-hot")
LENGTHS = Choice("torch", "recurrence", "ATen takes lengths in packed form only")


def check_impl(impl: str) -> None:
    """Raise ValueError unless `impl` names an implementation of this version."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")


def choose(
    *,
    impl: str,
    token_ids: bool,
    w_hh: Tensor,
    reset_after: bool = True,
    lengths: bool = False,
    projected: bool = False,
    batch: int = 1,
) -> Choice:
    """The implementation of one call. `lengths`: whether the batch is ragged and not packed. w_hh: [G*H, H].

    Raises:
        RuntimeError: `impl` names an implementation that cannot run this case. ValueError: it names none.
    """
    check_impl(impl)
    if impl in ("auto", "torch"):
        return automatic(token_ids, reset_after, lengths)
    return _triton(impl, w_hh, projected, batch)


def automatic(token_ids: bool, reset_after: bool = True, lengths: bool = False) -> Choice:
    """What `impl="auto"` runs. Cells ask at every step, so that this has to be quick."""
    if token_ids:
        return TOKEN_IDS
    if not reset_after:
        return RESET_BEFORE
    return LENGTHS if lengths else ATEN


def _triton(impl: str, w_hh: Tensor, projected: bool, batch: int) -> Choice:
    """The Triton path that `impl` names; RuntimeError with the reason if it cannot run."""
    obstacle, found = None, None
    dtype = autocast_dtype(w_hh) or w_hh.dtype
    if find_spec("triton") is None:
        obstacle = "triton is not installed"
    elif not w_hh.is_cuda and not (w_hh.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        obstacle = f"the weights are on {w_hh.device}: a GPU is needed, or TRITON_INTERPRET=1 for the interpreter"
    elif dtype not in TRITON_DTYPES:
        obstacle = f"there is no kernel for {dtype}"
    elif projected:
        obstacle = "there is no kernel for proj_size"
    elif w_hh.numel() == 0:
        obstacle = f"w_hh of shape {list(w_hh.shape)} is empty"
    elif impl == "triton":
        H = w_hh.shape[1]
        precision = matmul_precision(dtype, w_hh.device)
        found = plan.sequence_plan(H, batch, len(w_hh) // H, dtype.itemsize, gpu(w_hh.device), precision=precision)
        obstacle = f"{found}; 'triton-step' has no such limit" if isinstance(found, str) else None
    if obstacle is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {obstacle}")
    if isinstance(found, plan.Blocks):
        return Choice(impl, "sequence", f"asked for; {found.reason}")
    if isinstance(found, plan.Split):
        return Choice(impl, "split", f"asked for; {found.reason}")
    return Choice(impl, "step", "asked for; one launch a step")


def gpu(device: torch.device) -> plan.Device | None:
    """What the plan has to know of it; None for the CPU, where the interpreter runs."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return plan.Device(10 * properties.major + properties.minor, properties.multi_processor_count)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Triton's input_precision for a recurrence's matmuls: tf32 where torch's own switch for RNNs allows it.

    Elsewhere a float32 is taken for the sum of two tf32, and three products of these make one in almost float32's
    precision: "tf32x3". "ieee" has no matrix instructions and spills registers.
    """
    if dtype != torch.float32 or device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "tf32x3"  # type: ignore[attr-defined]


class _Chooses(Protocol):
    def choose(self, input: Tensor | PackedSequence) -> Choice: ...


def explain(module: _Chooses, input: Tensor | PackedSequence) -> Choice:
    """Which implementation `module(input)` runs, and why: `print(fastcells.explain(gru, x))`.

    module: a layer or cell of this package. input: what would be passed to it; nothing is computed.

    Raises:
        TypeError: any other module.
    """
    if not hasattr(module, "choose"):
        name = f"{type(module).__module__}.{type(module).__name__}"
        hint = "; fastcells.convert(module) gives its twin" if isinstance(module, nn.RNNBase | nn.RNNCellBase) else ""
        raise TypeError(f"explain() needs a fastcells layer or cell, got {name}{hint}")
    return module.choose(input)
