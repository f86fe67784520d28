"""When a run is saved, and what happens when it cannot be: training goes on, and saving is tried again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastcells.charlm import snapshot
from fastcells.charlm.runfolder import CHECKPOINT, RunFolder
from fastcells.charlm.training import Training

RETRY = 60.0  # seconds after a failure, or sooner if saving is due sooner


class Saver:
    """Writes checkpoint and best weights every `every` seconds and when asked.

    tell: shows a warning.
    """

    def __init__(self, run: RunFolder, training: Training, every: float, tell: Callable[[str], None]) -> None:
        self.run, self.training, self.every, self.tell = run, training, every, tell
        self.next = time.monotonic() + every
        self.kept_step: int | None = None  # of the last checkpoint
        self.kept_best: int | None = None  # the step whose weights are kept
        self.taken: snapshot.Snapshot | None = None
        self.failure: str | None = None  # what is said of the last attempt, if it failed

    def save_if_due(self) -> None:
        """Save if the time has come. What goes wrong is shown, not raised. All processes have to ask."""
        world = self.training.world
        if world.any(world.leads and time.monotonic() >= self.next, self.training.device):
            self.save()

    def save(self) -> bool:
        """Save now. Returns whether it worked; if not, says why and when it is tried again."""
        try:
            self._write(self.run)
        except OSError as error:
            self.next = time.monotonic() + min(self.every, RETRY)
            failure = f"{self._named(error)} cannot be written: {error.strerror or error}"
            if failure != self.failure:  # not again for hours
                kept = "nothing yet" if self.kept_step is None else f"the checkpoint of step {self.kept_step}"
                again = f"saving is tried again in {min(self.every, RETRY):.0f} s"
                self.tell(f"{failure}; kept is {kept}. Training goes on, and {again}")
            self.failure = failure
            return False
        if self.failure is not None:
            self.tell(f"saved in {self.run.path} again, at step {self.kept_step}")
            self.failure = None
        self.next = time.monotonic() + self.every
        return True

    def finish(self, *, checkpoint: bool = True) -> Path | None:
        """Save at the end: in the run folder, else in the system's temporary folder. Returns where, None if nowhere.

        checkpoint: False saves the best weights alone, and leaves the last checkpoint as it is.
        """
        try:
            self._write(self.run, checkpoint=checkpoint)
            return self.run.path
        except OSError as error:
            self.tell(f"{self._named(error)} cannot be written: {error.strerror or error}")
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="fastcells-"))
            self._write_elsewhere(RunFolder(folder))
            return folder
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self.tell(f"nor can {self._named(error)}, in the system's temporary folder: {error.strerror or error}")
            return None

    def _write(self, run: RunFolder, *, checkpoint: bool = True) -> None:
        best = self.training.place.best_step
        if checkpoint:
            self.taken = snapshot.take(self.training)
            if self.training.world.leads:
                run.save_checkpoint(*self.taken)
            self.kept_step = self.training.place.step
        if self.kept_best != best or best == 0:
            if self.training.world.leads:
                run.save_weights(self.training.kept())
            self.kept_best = best

    def _write_elsewhere(self, run: RunFolder) -> None:
        """The weights first, and what they need; then what else can be written."""
        assert self.run.described is not None
        run.save_weights(self.training.kept())
        run.describe(*self.run.described)
        with contextlib.suppress(OSError):
            if self.taken is not None:
                run.save_checkpoint(*self.taken)

    def _named(self, error: OSError) -> str:
        return str(error.filename or self.run.path / CHECKPOINT)
