"""What is asked for by an option and has to be installed: said before a run, not after it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from fastcells.charlm.errors import InputError


def need(option: str, module: str, package: str) -> None:
    """Raise InputError, which says what to install, unless `module` is there."""
    if find_spec(module) is None:
        raise InputError(f"{option} needs {module}: pip install '{package}'")


class Writer(Protocol):
    """TensorBoard's SummaryWriter, as far as it is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """One point of a curve."""

    def close(self) -> None:
        """Write what waits."""


def board(folder: Path) -> Writer:
    """A writer of events for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Writer = SummaryWriter(str(folder))
    return writer
