"""Checks that make a ratio mean something: both sides compute the same, and ours is not theirs under another name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastcells.dispatch import Choice


class GuardError(AssertionError):
    """The two sides of a comparison are not what the table says."""


def must_run(choice: Choice, path: str) -> None:
    """Raise GuardError unless `choice` is the path that the row claims to time."""
    if choice.path != path:
        raise GuardError(f"this row times the path {path!r}, but {choice} would run")


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
