"""Checks that make a ratio mean something: both sides compute the same, and ours is not theirs under another name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from bench.cases.case import Case
from fastcells.backends.base import Choice

# What torch.nn's layers and cells call, by their names in torch's profiler.
TORCH_OPERATORS = frozenset(
    f"aten::{name}"
    for name in (
        *("gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        *("_cudnn_rnn", "mkldnn_rnn_layer", "_thnn_fused_gru_cell", "_thnn_fused_lstm_cell"),
    )
)
# Largest error that is still rounding, relative to the largest element. float32: sums over some thousand terms in
# another order, a few hundred roundings of 6e-8. tf32 rounds to 5e-4, float16 to 5e-4 and bfloat16 to 4e-3, once an
# operation and step: a few dozen roundings. A wrong term is off by about its own size.
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1}


class GuardError(AssertionError):
    """The two sides of a comparison are not what the table says."""


def tolerance(case: Case) -> float:
    """How far two implementations of a case may differ."""
    return TOLERANCES["tf32" if case.precision == "tf32" else case.dtype]


def claims_own(case: Case, contender: str) -> bool:
    """Whether a row of ours claims to time something else than torch.nn's operator.

    torch.nn takes neither token ids nor a kernel's name. On dense input `auto` may choose torch.nn's operator where
    that is fastest; such a row says so in its path, and the report shows no speed-up for it.
    """
    return case.ids or contender not in ("fastcells-auto", "fastcells-torch")


def must_differ(choice: Choice, ran: Collection[str]) -> None:
    """Raise GuardError unless what ran is what `choice` says, and is not torch.nn's operator.

    ran: the operators that torch's profiler saw.
    """
    if choice.path == "aten":
        raise GuardError(f"the row claims an implementation of ours, but {choice} would run: torch.nn's own operator")
    must_be(choice, ran)


def must_be(choice: Choice, ran: Collection[str]) -> None:
    """Raise GuardError unless torch.nn's operator ran exactly where `choice` says that it does."""
    seen = sorted(TORCH_OPERATORS.intersection(ran))
    if (choice.path == "aten") != bool(seen):
        raise GuardError(f"{choice} should run, but torch.nn's operators that ran are {seen}")


def must_agree(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Raise GuardError unless the tensors agree to `tolerance`, relative to the largest element of each."""
    if len(ours) != len(theirs):
        raise GuardError(f"{len(ours)} tensors against {len(theirs)}")
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            raise GuardError(f"tensor {index}: shape {list(a.shape)} against {list(b.shape)}")
        error = (a.double() - b.double()).abs().max().item() / max(b.double().abs().max().item(), 1e-30)
        if not error <= tolerance:
            raise GuardError(f"tensor {index} of shape {list(a.shape)}: relative error {error:.1e} > {tolerance:.1e}")
