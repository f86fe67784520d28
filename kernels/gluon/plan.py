"""Which blocks for which shape: pure Python, without a GPU and without triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resident:
    """A pass split over programs that keep their weights in registers, and so have to run at once."""

    batch: int
    hidden: int  # columns of a program
    split: int  # parts of K, one a warp
    inner: int  # columns of an operand
    operands: int  # of a warp
    groups: int  # of programs that run at once, at most; each does one batch tile after another
    reason: str

    @property
    def width(self) -> int:
        """Columns of a mailbox's row."""
        return self.split * self.inner * self.operands
