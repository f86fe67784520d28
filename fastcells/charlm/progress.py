"""What a training run shows and keeps: progress bar or plain lines, metrics, generated lines, the best weights."""

from __future__ import annotations

import sys
from typing import TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from fastcells.charlm.checkpoint import RunFolder
from fastcells.charlm.corpus import Vocabulary
from fastcells.charlm.generate import generate
from fastcells.charlm.model import CharLM
from fastcells.charlm.presets import Config
from fastcells.charlm.sampling import batches_per_epoch
from fastcells.charlm.train import Epoch
from fastcells.dispatch import explain


class Progress:
    """A progress bar with tokens per second on a terminal, plain lines elsewhere.

    Keeps the weights after the epoch with the lowest perplexity: Adam without clipping, as the lessons have it,
    now and then leaves a minimum that it had reached, and comes back to it many epochs later.
    """

    def __init__(
        self, run: RunFolder, config: Config, ids: Tensor, vocabulary: Vocabulary, prefixes: list[str], length: int
    ) -> None:
        self.run, self.config, self.vocabulary, self.prefixes, self.length = run, config, vocabulary, prefixes, length
        self.model: CharLM | None = None
        self.last: Epoch | None = None
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}
        steps = config.epochs * batches_per_epoch(len(ids), config.sampling, config.batch, config.steps)
        total = steps * config.batch * config.steps
        self.bar = tqdm(total=total, unit="token", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def step(self, tokens: int) -> None:
        """After each training step."""
        self.bar.update(tokens)

    def epoch(self, model: CharLM, epoch: Epoch) -> None:
        """After each epoch: metrics; at a report, perplexity and generated lines."""
        if self.model is None:
            self.model = model
            parameters = sum(p.numel() for p in model.parameters())
            choice = explain(model.layer, torch.zeros(1, 1, dtype=torch.int64))
            self.say(f"model {model.layer}, {parameters:,} parameters; runs on {choice}")
        self.run.add_metrics(epoch)
        self.last = epoch
        if self.best is None or epoch.loss < self.best.loss:
            self.best = epoch
            self.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.bar.set_postfix(epoch=epoch.number, perplexity=f"{epoch.perplexity:.3f}")
        if epoch.number % self.config.report == 0 or epoch.number == self.config.epochs:
            self.say(
                f"epoch {epoch.number:4d}/{self.config.epochs}  perplexity {epoch.perplexity:8.3f}  "
                f"{epoch.tokens_per_second:,.0f} tokens/s  {epoch.seconds:.1f} s"
            )
            self._sample(model)

    def finish(self) -> None:
        """Save the best weights, and say whose they are; nothing if not one epoch was finished."""
        if self.model is None or self.best is None or self.last is None:
            return
        self.model.load_state_dict(self.best_weights)
        if self.best.number != self.last.number:
            self.say(
                f"best perplexity {self.best.perplexity:.3f} after epoch {self.best.number}: these weights are kept"
            )
            self._sample(self.model)
        self.save(self.model)

    def save(self, model: CharLM) -> None:
        """Write the model's weights into the run folder."""
        self.run.save_weights(model)
        self.say(f"saved in {self.run.path}")

    def say(self, line: str, file: TextIO | None = None) -> None:
        """A line that the progress bar does not tear apart."""
        tqdm.write(line, file=file or sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _sample(self, model: CharLM) -> None:
        for prefix in self.prefixes:
            self.say(f"  - {generate(model, self.vocabulary, prefix, self.length)}")
