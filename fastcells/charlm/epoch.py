"""What training tells: of each epoch, and of a run that had to end early."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcells.charlm.model import CharLM


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured. loss: mean cross-entropy in nats a character, before each step's update.

    valid: the same for the validation text after the epoch, None if there is none. rate: the learning rate at its end.
    """

    number: int
    loss: float
    tokens_per_second: float
    seconds: float  # since training began
    valid: float | None = None
    rate: float = math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss), or inf where that is too large for a float."""
        return perplexity(self.loss)


class Diverged(RuntimeError):
    """The loss or a weight is not finite, or the loss stays far above what it was.

    `model` holds the weights of the best epoch, `good`; if that is 0, those after a `step` at which all was well.
    """

    def __init__(self, model: CharLM, epoch: int, loss: float, good: int, step: int = 0) -> None:
        kept = f"those after step {step}" if step else "the initial ones"
        kept = f"those after epoch {good}" if good else kept
        super().__init__(
            f"training diverged in epoch {epoch} (loss {loss:.4g}): stopped; the weights kept are {kept}. "
            "Try a smaller --lr, --schedule cosine, a --warmup or a --clip"
        )
        self.model, self.epoch, self.loss, self.good, self.step = model, epoch, loss, good, step


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `train`. `model` holds the weights of the best epoch, `good`, or those of now if `good` is 0."""

    def __init__(self, model: CharLM, good: int) -> None:
        super().__init__(f"interrupted; the model holds the weights {f'after epoch {good}' if good else 'of now'}")
        self.model, self.good = model, good


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats; inf instead of an OverflowError."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
