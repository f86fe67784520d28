"""What a training run shows and keeps: progress bar or plain lines, metrics, generated lines, the best weights."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from fastcells.charlm.checkpoint import RunFolder
from fastcells.charlm.corpus import Vocabulary
from fastcells.charlm.generate import generate
from fastcells.charlm.model import CharLM
from fastcells.charlm.presets import Config
from fastcells.charlm.sampling import batches_per_epoch
from fastcells.charlm.train import Epoch


class Progress:
    """A progress bar with tokens per second on a terminal, plain lines elsewhere.

    Keeps the weights after the epoch with the lowest perplexity: Adam without clipping, as the lessons have it,
    now and then leaves a minimum that it had reached, and comes back to it many epochs later.
    """

    SAVE_EVERY = 30.0  # seconds, at least, between two times that the best weights go to disk during training

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        model: CharLM,
        ids: Tensor,
        vocabulary: Vocabulary,
        prefixes: list[str],
        length: int,
    ) -> None:
        self.run, self.config, self.model = run, config, model
        self.vocabulary, self.prefixes, self.length = vocabulary, prefixes, length
        self.last: Epoch | None = None
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.saved: Epoch | None = None
        steps = config.epochs * batches_per_epoch(len(ids), config.sampling, config.batch, config.steps)
        total = steps * config.batch * config.steps
        quiet = sys.stderr is None or not sys.stderr.isatty()
        self.bar = tqdm(total=total, unit="token", unit_scale=True, disable=quiet, dynamic_ncols=True)

    def step(self, tokens: int) -> None:
        """After each training step."""
        self.bar.update(tokens)

    def epoch(self, model: CharLM, epoch: Epoch) -> None:
        """After each epoch: metrics, the best weights; at a report, perplexity and generated lines."""
        self.run.add_metrics(epoch)
        self.last = epoch
        if self.best is None or epoch.loss < self.best.loss:
            self.best = epoch
            self.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.bar.set_postfix(epoch=epoch.number, perplexity=f"{epoch.perplexity:.3f}")
        report = epoch.number % self.config.report == 0 or epoch.number == self.config.epochs
        if self.saved is None or report or epoch.seconds - self.saved.seconds > self.SAVE_EVERY:
            self.run.save_weights(self.best_weights)
            self.saved = epoch
        if report:
            say(
                f"epoch {epoch.number:4d}/{self.config.epochs}  perplexity {epoch.perplexity:8.3f}  "
                f"{epoch.tokens_per_second:,.0f} tokens/s  {epoch.seconds:.1f} s"
            )
            self._sample()

    def finish(self) -> None:
        """Save the best weights, and say whose they are; remove the folder if not one epoch was finished."""
        if self.best is None or self.last is None:
            self.run.discard()
            say("not one epoch was finished: nothing is kept")
            return
        self.model.load_state_dict(self.best_weights)
        if self.best.number != self.last.number:
            say(f"best perplexity {self.best.perplexity:.3f}, after epoch {self.best.number}: its weights are kept")
            self._sample()
        self.save()

    def save(self) -> None:
        """Write the model's weights into the run folder."""
        self.run.save_weights(self.model)
        say(f"saved in {self.run.path}")

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _sample(self) -> None:
        for prefix in self.prefixes:
            say(f"  - {generate(self.model, self.vocabulary, prefix, self.length)}")


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
