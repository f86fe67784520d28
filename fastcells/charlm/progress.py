"""What a run shows and writes down while it goes on: progress bar or plain lines, metrics, generated lines."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from fastcells.charlm.corpus import Vocabulary
from fastcells.charlm.epoch import Epoch, perplexity
from fastcells.charlm.generate import generate
from fastcells.charlm.model import CharLM
from fastcells.charlm.runfolder import RunFolder
from fastcells.charlm.saver import Saver
from fastcells.charlm.training import Training


class Progress:
    """A progress bar with tokens per second on a terminal, plain lines elsewhere; both in the run's log as well.

    save_every, report_every: seconds between two times that the run is saved, and that it says how it stands.
    """

    def __init__(
        self,
        run: RunFolder,
        training: Training,
        vocabulary: Vocabulary,
        prefixes: list[str],
        length: int,
        *,
        save_every: float = 120.0,
        report_every: float = 60.0,
    ) -> None:
        self.run, self.training, self.config = run, training, training.config
        self.vocabulary, self.prefixes, self.length = vocabulary, prefixes, length
        self.last: Epoch | None = None
        self.best: Epoch | None = None
        self.saver = Saver(run, training, save_every, self.warn)
        self.report_every, self.reported, self.tokens = report_every, time.monotonic(), 0
        characters = self.config.batch * self.config.steps
        quiet = sys.stderr is None or not sys.stderr.isatty()
        self.bar = tqdm(
            total=training.total * characters,
            initial=training.place.step * characters,
            unit="token",
            unit_scale=True,
            disable=quiet,
            dynamic_ncols=True,
        )
        self.dumb = False  # whether the log could not be written, and that has been said

    def step(self, tokens: int) -> None:
        """After each training step."""
        self.tokens += tokens
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.bar.update(tokens)
        if time.monotonic() - self.reported >= self.report_every:
            self._report_time()
        self.saver.save_if_due()

    def epoch(self, model: CharLM, epoch: Epoch) -> None:
        """After each epoch: metrics; at a report, perplexity and generated lines."""
        self._write(lambda: self.run.add_metrics(epoch))
        self.last = epoch
        if self.training.place.best_epoch == epoch.number:
            self.best = epoch
        self.bar.set_postfix(epoch=epoch.number, perplexity=f"{epoch.perplexity:.3f}", refresh=False)
        if epoch.number % self.config.report == 0 or epoch.number == self.config.epochs:
            self.say(
                f"epoch {epoch.number:4d}/{self.config.epochs}  perplexity {epoch.perplexity:8.3f}  "
                f"{epoch.tokens_per_second:,.0f} tokens/s  {epoch.seconds:.1f} s"
            )
            self._sample()

    def finish(self, *, checkpoint: bool = True) -> Path | None:
        """Save, and say what is kept and where. Returns the folder, or None. checkpoint: as in `Saver.finish`."""
        path = self.saver.finish(checkpoint=checkpoint)
        place = self.training.place
        self.training.keep_best()
        if not place.best_epoch:
            self.say(f"not one epoch was finished: the weights are those after step {place.step}")
        elif place.best_epoch != place.epoch and place.best_loss is not None:
            best = perplexity(place.best_loss)
            self.say(f"best perplexity {best:.3f}, after epoch {place.best_epoch}: its weights are kept")
            self._sample()
        self.say("saved nowhere" if path is None else f"saved in {path}")
        return path

    def close(self) -> None:
        """End the progress bar."""
        with contextlib.suppress(OSError):
            self.bar.close()

    def say(self, line: str) -> None:
        """A line on standard output and in the log."""
        say(line)
        self._log(line)

    def warn(self, line: str) -> None:
        """A warning on standard error and in the log."""
        say(f"fastcells: warning: {line}", file=sys.stderr)
        self._log(f"warning: {line}")

    def error(self, line: str) -> None:
        """What ended the run, on standard error and in the log."""
        say(f"fastcells: error: {line}", file=sys.stderr)
        self._log(f"error: {line}")

    def _report_time(self) -> None:
        training, place = self.training, self.training.place
        speed = self.tokens / (time.monotonic() - self.reported)
        self.reported, self.tokens = time.monotonic(), 0
        row = {"seconds": round(place.seconds, 3), "step": place.step, "epoch": place.epoch, "loss": training.recent}
        row |= {"learning_rate": training.rate, "tokens_per_second": round(speed, 1)}
        self._write(lambda: self.run.by_time.add(row))
        line = (
            f"step {place.step:,}/{training.total:,}  epoch {place.epoch + place.done / training.per_epoch:.2f}  "
            f"perplexity {perplexity(training.recent):.3f}  {speed:,.0f} tokens/s  {place.seconds:.0f} s"
        )
        if self.bar.disable:
            say(line)
        self._log(line)

    def _log(self, line: str) -> None:
        self._write(lambda: self.run.log.add(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {line}"))

    def _write(self, action: Callable[[], None]) -> None:
        """Write to a file of the run that grows; what fails waits there, and that is said once."""
        try:
            action()
        except OSError as error:
            if not self.dumb:
                self.dumb = True
                name = error.filename or self.run.path
                self.warn(f"{name} cannot be written: {error.strerror or error}; training goes on, its lines wait")
        else:
            self.dumb = False

    def _sample(self) -> None:
        for prefix in self.prefixes:
            self.say(f"  - {generate(self.training.model, self.vocabulary, prefix, self.length)}")


def say(line: str, file: TextIO | None = None) -> None:
    """A line that the progress bar does not tear apart. A reader who has gone is no reason to stop training."""
    stream = file or sys.stdout
    if stream is None:
        return
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except OSError:
        if stream is sys.stdout:
            silence_stdout()


def silence_stdout() -> None:
    """After its reader has gone: or Python would complain once more at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  it stays open until the process ends
