"""What a run shows and writes down while it goes on: progress bar or plain lines, metrics, generated lines."""

from __future__ import annotations

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fastcells.charlm.epoch import Epoch, perplexity
from fastcells.charlm.evaluate import bits, mean_loss
from fastcells.charlm.extras import Writer
from fastcells.charlm.generate import generate
from fastcells.charlm.model import CharLM
from fastcells.charlm.runfolder import RunFolder
from fastcells.charlm.saver import Saver
from fastcells.charlm.terminal import printable, say
from fastcells.charlm.threads import Threads
from fastcells.charlm.training import Training
from fastcells.charlm.vocabulary import Vocabulary


@dataclass
class Sample:
    """What a report generates: lines from these prefixes."""

    vocabulary: Vocabulary
    prefixes: list[str]
    length: int
    unknown: str = "error"

    def lines(self, model: CharLM) -> list[str]:
        """The generated lines."""
        return [generate(model, self.vocabulary, prefix, self.length, unknown=self.unknown) for prefix in self.prefixes]


class Progress:
    """A progress bar with tokens per second on a terminal, plain lines elsewhere; both in the run's log as well.

    save_every, report_every: seconds between two times that the run is saved, and that it says how it stands.
    """

    def __init__(
        self,
        run: RunFolder,
        training: Training,
        sample: Sample,
        threads: Threads,
        *,
        writer: Writer | None = None,
        save_every: float = 120.0,
        report_every: float = 60.0,
    ) -> None:
        self.run, self.training, self.config = run, training, training.config
        self.sample, self.threads, self.valid = sample, threads, math.nan
        self.saver = Saver(run, training, save_every, self.warn)
        self.writer = writer
        self.report_every, self.reported, self.tokens = report_every, time.monotonic(), 0
        characters = self.config.batch * self.config.steps
        self.shows = training.world.leads
        quiet = not self.shows or sys.stderr is None or not sys.stderr.isatty()
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
        self.threads.look_if_due()
        self.saver.save_if_due()

    def epoch(self, model: CharLM, epoch: Epoch) -> None:
        """After each epoch: metrics; at a report, perplexity and generated lines."""
        self._write(lambda: self.run.add_metrics(epoch))
        if self.writer is not None:
            curves = {"loss/training": epoch.loss, "loss/validation": epoch.valid, "learning rate": epoch.rate}
            curves["tokens per second"] = epoch.tokens_per_second
            for name, value in curves.items():
                if value is not None:
                    self.writer.add_scalar(name, value, self.training.place.step)
        measured = f"perplexity {epoch.perplexity:8.3f}"
        postfix = {"epoch": str(epoch.number), "perplexity": f"{epoch.perplexity:.3f}"}
        if epoch.valid is not None:
            self.valid = epoch.valid
            postfix["validation"] = f"{perplexity(epoch.valid):.3f}"
            measured += f"  validation {perplexity(epoch.valid):8.3f}, {bits(epoch.valid):.3f} bits a character"
        self.bar.set_postfix(postfix, refresh=False)
        if epoch.number % self.config.report == 0 or self.training.done():
            self.say(
                f"epoch {epoch.number:4d}/{self.config.epochs}  {measured}  "
                f"{epoch.tokens_per_second:,.0f} tokens/s  {epoch.seconds:.1f} s"
            )
            self._sample()

    def evaluation(self, loss: float) -> None:
        """After a look at the validation text within an epoch."""
        self.valid = loss
        self._report_time(f"  validation {perplexity(loss):.3f}, {bits(loss):.3f} bits a character")

    def finish(self, *, checkpoint: bool = True) -> Path | None:
        """Save, and say what is kept and where. Returns the folder, or None. checkpoint: as in `Saver.finish`."""
        path = self.saver.finish(checkpoint=checkpoint)
        place = self.training.place
        self.training.keep_best()
        measured = "validation perplexity" if len(self.training.validation) else "perplexity"
        if place.best_loss is None:
            self.say(f"not one epoch was finished: the weights are those after step {place.step}")
        elif place.best_step != place.step:
            when = f"epoch {place.best_epoch}"
            if place.best_step != place.best_epoch * self.training.per_epoch:
                when = f"step {place.best_step}"
            self.say(f"best {measured} {perplexity(place.best_loss):.3f}, after {when}: its weights are kept")
            self._sample()
        if len(self.training.test) and self.shows:
            loss = mean_loss(self.training.model, self.training.test, self.config.batch, self.config.steps)
            self.say(f"test perplexity {perplexity(loss):.3f}, {bits(loss):.3f} bits a character")
        self.say("saved nowhere" if path is None else f"saved in {path}")
        return path

    def close(self) -> None:
        """End the progress bar."""
        with contextlib.suppress(OSError):
            self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def say(self, line: str) -> None:
        """A line on standard output and in the log."""
        if self.shows:
            say(line)
            self._log(line)

    def warn(self, line: str) -> None:
        """A warning on standard error and in the log."""
        if self.shows:
            say(f"fastcells: warning: {line}", file=sys.stderr)
            self._log(f"warning: {line}")

    def error(self, line: str) -> None:
        """What ended the run, on standard error and in the log."""
        if self.shows:
            say(f"fastcells: error: {line}", file=sys.stderr)
            self._log(f"error: {line}")

    def _report_time(self, measured: str = "") -> None:
        training, place = self.training, self.training.place
        speed = self.tokens / max(time.monotonic() - self.reported, 1e-9)
        self.reported, self.tokens = time.monotonic(), 0
        row: dict[str, float | None] = {"seconds": round(place.seconds, 3), "step": place.step, "epoch": place.epoch}
        row["loss"] = training.recent
        row |= {"valid_loss": None if math.isnan(self.valid) else self.valid}
        row |= {"learning_rate": training.rate, "tokens_per_second": round(speed, 1)}
        self._write(lambda: self.run.by_time.add(row))
        line = (
            f"step {place.step:,}/{training.total:,}  epoch {place.epoch + place.done / training.per_epoch:.2f}  "
            f"perplexity {perplexity(training.recent):.3f}{measured}  {speed:,.0f} tokens/s  {place.seconds:.0f} s"
        )
        if self.bar.disable and self.shows:
            say(line)
        self._log(line)

    def _log(self, line: str) -> None:
        now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        self._write(lambda: self.run.log.add(f"{now} {printable(line)}"))

    def _write(self, action: Callable[[], None]) -> None:
        """Write to a file of the run that grows; what fails waits there, and that is said once."""
        try:
            if self.shows:
                action()
        except OSError as error:
            if not self.dumb:
                self.dumb = True
                name = error.filename or self.run.path
                self.warn(f"{name} cannot be written: {error.strerror or error}; training goes on, its lines wait")
        else:
            self.dumb = False

    def _sample(self) -> None:
        for line in self.sample.lines(self.training.model) if self.shows else []:
            self.say(f"  - {line}")
