"""When a run is beyond hope: a loss that is not finite, or stays far above what it had been."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Adam at a constant 1e-2 leaves its minimum and comes back within 200 steps; a lesson is 1,600 steps.
FACTOR, MARGIN = 3.0, 1.0  # times the lowest loss, and nats above it: near 0 a factor says nothing
SHARE, LEAST, MOST = 5, 200, 2000  # a fifth of the run's steps, between these


@dataclass
class Watch:
    """Looks at the mean loss of one stretch of steps after the other."""

    lowest: float  # the lowest mean so far; at first that of guessing, ln(vocabulary)
    above: int = 0  # steps in a row whose mean was far above

    def see(self, loss: float, steps: int, total: int) -> bool:
        """Whether training has diverged, after `steps` more steps, of `total` in the run, with this mean loss."""
        if not math.isfinite(loss):
            return True
        self.above = self.above + steps if self.far(loss) else 0
        self.lowest = min(self.lowest, loss)
        return self.above >= min(max(total // SHARE, LEAST), MOST)

    def far(self, loss: float) -> bool:
        """Whether a loss is far above the lowest."""
        return not loss <= max(FACTOR * self.lowest, self.lowest + MARGIN)
