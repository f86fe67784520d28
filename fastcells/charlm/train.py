"""Training as one call: truncated backpropagation through time, or random sampling; perplexity after each epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcells.charlm.epoch import Epoch, Interrupted
from fastcells.charlm.model import CharLM
from fastcells.charlm.presets import Config
from fastcells.charlm.sampling import Ids
from fastcells.charlm.training import Training


def train(
    ids: Ids,
    vocabulary: int,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    model: CharLM | None = None,
    on_step: Callable[[int], None] = lambda tokens: None,
    on_epoch: Callable[[CharLM, Epoch], None] = lambda model, epoch: None,
) -> CharLM:
    """Train a character language model on ids [N] and return it, with the weights of its best epoch.

    ids: a tensor, or an array, which may be mapped from a file. vocabulary: number of distinct characters. on_step gets
    the number of characters that a step learned from, on_epoch the model and what the epoch measured. Seeds torch's
    global generator with config.seed, so that the same seed on the same device gives the same losses. `model` continues
    with an existing model.

    Raises:
        InputError: the corpus does not fill one batch. Diverged: a loss or weight is not finite, or the loss stays
        far above what it was. Interrupted: Ctrl-C. The last two bring the model.
    """
    training = Training(ids, vocabulary, config, device=device, model=model)
    try:
        training.run(on_step, on_epoch)
    except KeyboardInterrupt:
        raise Interrupted(training.keep_best(), training.place.best_epoch) from None
    return training.keep_best()
