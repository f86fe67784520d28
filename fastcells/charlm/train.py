"""The training loop: truncated backpropagation through time, or random sampling; perplexity after each epoch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcells.charlm.model import CharLM, State, detach, dtype_of
from fastcells.charlm.presets import Config
from fastcells.charlm.sampling import batches, batches_per_epoch
from fastcells.charlm.schedule import share


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured. loss: mean cross-entropy in nats a character, before each step's update."""

    number: int
    loss: float
    tokens_per_second: float
    seconds: float  # since training began

    @property
    def perplexity(self) -> float:
        """exp(loss), or inf where that is too large for a float."""
        return perplexity(self.loss)


class Diverged(RuntimeError):
    """The loss or a weight is no longer finite. `model` holds the weights of the last good epoch, `good`."""

    def __init__(self, model: CharLM, epoch: int, loss: float, good: int) -> None:
        kept = f"those after epoch {good}" if good else "the initial ones"
        super().__init__(
            f"training diverged in epoch {epoch} (loss {loss:.4g}): stopped; the weights kept are {kept}. "
            "Try a smaller --lr or a --clip"
        )
        self.model, self.epoch, self.loss, self.good = model, epoch, loss, good


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats; inf instead of an OverflowError."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def train(
    ids: Tensor,
    vocabulary: int,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    model: CharLM | None = None,
    on_step: Callable[[int], None] = lambda tokens: None,
    on_epoch: Callable[[CharLM, Epoch], None] = lambda model, epoch: None,
) -> CharLM:
    """Train a character language model on ids [N] and return it.

    vocabulary: number of distinct characters. on_step gets the number of characters that a step learned from,
    on_epoch the model and what the epoch measured. Seeds torch's global generator with config.seed, so that the
    same seed on the same device gives the same losses. `model` continues with an existing model.

    Raises:
        InputError: the corpus does not fill one batch. Diverged: a loss or weight is not finite.
    """
    if config.bidirectional:
        warnings.warn(
            "a bidirectional language model sees the characters that it has to predict: its perplexity falls "
            "to almost 1 and its generated text means nothing",
            stacklevel=2,
        )
    torch.manual_seed(config.seed)
    shuffle = torch.Generator().manual_seed(config.seed)
    model = (model or CharLM(vocabulary, config)).to(device, dtype_of(config))
    model.train()
    ids = ids.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, config)
    good, good_epoch = _snapshot(model), 0
    start = time.perf_counter()
    step, steps = 0, config.epochs * batches_per_epoch(len(ids), config.sampling, config.batch, config.steps)
    for number in range(1, config.epochs + 1):
        epoch_start = time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=device)
        tokens = 0
        state: State | None = None
        for x, y in batches(ids, config.sampling, config.batch, config.steps, shuffle):
            logits, end = model(x, None if config.sampling == "random" else state)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
            optimizer.zero_grad()
            (loss * y.numel() if config.loss == "sum" else loss).backward()
            if config.clip is not None:
                nn.utils.clip_grad_norm_(parameters, config.clip)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * share(config.schedule, config.warmup, step, steps)
            optimizer.step()
            step += 1
            state = detach(end)
            total += loss.detach() * y.numel()
            tokens += y.numel()
            on_step(y.numel())
        mean = total.item() / tokens  # the one wait for the device in an epoch
        if not (math.isfinite(mean) and all(p.isfinite().all() for p in parameters)):
            model.load_state_dict(good)
            raise Diverged(model, number, mean, good_epoch)
        good, good_epoch = _snapshot(model), number
        now = time.perf_counter()
        on_epoch(model, Epoch(number, mean, tokens / (now - epoch_start), now - start))
        model.train()
    return model


def _optimizer(parameters: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr)
    # Adam's usual eps of 1e-8 is 0 in float16, and 0 / 0 follows. Fused, its update is one pass over memory: a tenth of
    # the time on a CPU, where the plain one costs as much as a layer's forward.
    return torch.optim.Adam(parameters, lr=config.lr, eps=1e-4 if config.dtype == "float16" else 1e-8, fused=True)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
