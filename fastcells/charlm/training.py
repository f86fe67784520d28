"""A run under way: one step after the other, and all that has to be kept to go on from between two of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastcells.charlm.divergence import Watch
from fastcells.charlm.epoch import Diverged, Epoch
from fastcells.charlm.errors import InputError
from fastcells.charlm.evaluate import mean_loss, split
from fastcells.charlm.idfile import release
from fastcells.charlm.model import CharLM, State, detach, dtype_of
from fastcells.charlm.optimizer import Optimizer
from fastcells.charlm.place import Place
from fastcells.charlm.presets import Config
from fastcells.charlm.sampling import Ids, batches, batches_per_epoch, check_length
from fastcells.charlm.schedule import share
from fastcells.charlm.world import World

ON_DEVICE = 1 << 28  # characters
REFRESHED = 1000  # steps between two copies of weights that are good as far as one knows
RELEASED = 4  # steps between two times that pages of mapped ids are given back
CHECKED = 50  # steps between two looks at the loss; on a GPU each look waits for it


class Training:
    """A model that learns from ids [N] by `config`; `run` goes on until the end, or until it is told to stop.

    model: continue with an existing model. world: the processes that train together, each with its rows of a batch.
    Seeds torch's global generator with config.seed.

    Raises:
        InputError: the corpus does not fill one batch.
    """

    def __init__(
        self,
        ids: Ids,
        vocabulary: int,
        config: Config,
        *,
        device: torch.device | str = "cpu",
        model: CharLM | None = None,
        world: World | None = None,
    ) -> None:
        if config.bidirectional:
            warnings.warn(
                "a bidirectional language model sees the characters that it has to predict: its perplexity falls "
                "to almost 1 and its generated text means nothing",
                stacklevel=3,
            )
        torch.manual_seed(config.seed)
        self.config, self.device, self.world = config, torch.device(device), world or World()
        if config.batch % self.world.size:
            raise InputError(f"a batch of {config.batch} rows does not divide among {self.world.size} processes")
        self.model = (model or CharLM(vocabulary, config)).to(device, dtype_of(config))
        learned, *measured = split(ids, config.validation, config.test)
        check_length(len(learned), config.sampling, config.batch, config.steps)
        self.ids = _near(learned, self.device)
        self.validation, self.test = measured
        of_epoch = batches_per_epoch(len(learned), config.sampling, config.batch, config.steps)
        self.per_epoch = -(-of_epoch // config.accumulate)  # steps
        self.total = config.epochs * self.per_epoch
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = Optimizer(self.parameters, config, self.device)
        self.forward: Callable[..., tuple[Tensor, State]] = torch.compile(self.model) if config.compile else self.model
        torch.manual_seed(config.seed + self.world.rank)  # for the dropout of each process's rows
        self.shuffle = torch.Generator().manual_seed(config.seed)
        self.shuffle_start = self.shuffle.get_state()  # when the epoch under way began
        self.place = Place()
        self.watch = Watch(math.log(max(2, vocabulary)))
        self.state: State | None = None  # carried from batch to batch, if sampling is consecutive
        self.loss = torch.zeros((), dtype=torch.float64, device=device)  # summed over the epoch under way
        self.unseen = torch.zeros_like(self.loss)  # of each step's mean, since the last look
        self.recent = math.nan  # the mean at the last look
        self.rate = 0.0  # the learning rate of the last step
        self.first = self.weights()  # what is kept if it diverges before anything was measured
        self.first_step = 0  # when these were the model's
        self.best: dict[str, Tensor] | None = None

    def run(
        self,
        on_step: Callable[[int], None] = lambda tokens: None,
        on_epoch: Callable[[CharLM, Epoch], None] = lambda model, epoch: None,
        stop: Callable[[], bool] = lambda: False,
        on_evaluation: Callable[[float], None] = lambda loss: None,
    ) -> bool:
        """Train until all is done. Returns False if `stop`, asked after each step, said to stop before.

        on_step gets the number of characters that a step learned from, on_epoch the model and what the epoch
        measured, on_evaluation the loss of the validation text where it is looked at within an epoch. Whenever they
        are called, `snapshot` is a state to go on from.

        Raises:
            Diverged: a loss or weight is not finite, or the loss stays far above what it was.
        """
        if self.world.size > 1 and not isinstance(self.forward, DistributedDataParallel):
            self.forward = DistributedDataParallel(self.forward)
        began = time.perf_counter() - self.place.seconds
        self.model.train()
        while not self.done():
            self.shuffle_start = self.shuffle.get_state()
            config = self.config
            sizes = config.sampling, config.batch, config.steps
            of_epoch = batches(self.ids, *sizes, self.shuffle, first=self.place.done * config.accumulate)
            while pairs := list(islice(of_epoch, config.accumulate)):
                tokens = self._step(pairs)
                self.place.seconds = time.perf_counter() - began
                ends = self.place.done == self.per_epoch
                if ends:
                    on_epoch(self.model, self._end_of_epoch())
                    self.model.train()
                elif config.evaluate and self.place.step % config.evaluate == 0:
                    on_evaluation(self._evaluated())
                on_step(tokens)
                if self.done():
                    break
                if stop():
                    return False
                if ends:
                    break
        if self.place.best_loss is not None and not len(self.validation) and self.watch.far(self.place.best_loss):
            raise self._diverged(self.place.best_loss)  # it never was as good as guessing
        return True

    def done(self) -> bool:
        """Whether the last epoch is over, or validation has not become better for too long."""
        patience = self.config.patience
        return self.place.epoch >= self.config.epochs or (patience is not None and self.place.waited >= patience)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def kept(self) -> dict[str, Tensor]:
        """The weights of the best epoch; before the first is finished, those of now."""
        return self.model.state_dict() if self.best is None else self.best

    def keep_best(self) -> CharLM:
        """The model, with the weights of the best epoch."""
        self.model.load_state_dict(self.kept())
        return self.model

    def _step(self, pairs: list[tuple[Tensor, Tensor]]) -> int:
        """One update, by the gradients of one batch or several. Returns how many characters it learned from."""
        config, place = self.config, self.place
        tokens = 0
        for x, y in pairs:
            x, y = (self.world.rows(ids).to(self.device) for ids in (x, y))
            loss, end = self.forward(x, None if config.sampling == "random" else self.state, y)
            # DistributedDataParallel takes the mean over the processes.
            scale = y.numel() * self.world.size if config.loss == "sum" else 1 / len(pairs)
            self.optimizer.backward(loss * scale)
            self.state = detach(end)
            self.loss += loss.detach() * y.numel()
            self.unseen += loss.detach() / len(pairs)
            tokens += y.numel() * self.world.size
        self.rate = config.lr * share(config.schedule, config.warmup, place.step, self.total)
        self.optimizer.step(self.rate)
        place.step, place.done, place.tokens = place.step + 1, place.done + 1, place.tokens + tokens
        if place.step % RELEASED == 0:
            release(self.ids)
        if place.step - place.checked >= CHECKED or place.done == self.per_epoch:
            self._look()
        return tokens

    def _look(self) -> None:
        """The loss since the last look: the one wait for the device."""
        steps = self.place.step - self.place.checked
        self.recent = self.world.total(self.unseen).item() / steps / self.world.size
        if self.watch.see(self.recent, steps, self.total) or not all(p.isfinite().all() for p in self.parameters):
            raise self._diverged(self.recent)
        lowest = self.recent <= self.watch.lowest
        if self.best is None and lowest and self.place.step - self.first_step >= REFRESHED:  # a long first epoch
            self.first, self.first_step = self.weights(), self.place.step
        self.unseen.zero_()
        self.place.checked = self.place.step

    def _diverged(self, loss: float) -> Diverged:
        number = min(self.place.epoch + 1, self.config.epochs)
        self.model.load_state_dict(self.first if self.best is None else self.best)
        return Diverged(self.model, number, loss, self.place.best_epoch, self.first_step)

    def _evaluated(self) -> float:
        """The loss of the validation text, now."""
        loss = mean_loss(self.model, self.validation, self.config.batch, self.config.steps)
        if self.world.size > 1:  # all have to decide alike
            mine = torch.tensor(loss / self.world.size, dtype=torch.float64, device=self.device)
            loss = self.world.total(mine).item()
        self._measured(loss)
        return loss

    def _measured(self, loss: float) -> None:
        """Keep the weights if they are the best so far."""
        place = self.place
        place.waited += 1
        if math.isfinite(loss) and (place.best_loss is None or loss < place.best_loss):
            self.best, place.best_loss, place.waited = self.weights(), loss, 0
            place.best_epoch, place.best_step = place.epoch + 1, place.step

    def _end_of_epoch(self) -> Epoch:
        place = self.place
        mean = self.world.total(self.loss).item() / place.tokens
        speed = place.tokens / max(place.seconds - place.epoch_start, 1e-9)
        valid = self._evaluated() if len(self.validation) else None
        epoch = Epoch(place.epoch + 1, mean, speed, place.seconds, valid, self.rate)
        if valid is None:
            self._measured(mean)
        self.loss.zero_()
        self.state = None
        self.place = replace(place, epoch=epoch.number, done=0, tokens=0, epoch_start=place.seconds)
        self.shuffle_start = self.shuffle.get_state()
        return epoch


def _near(ids: Ids, device: torch.device) -> Ids:
    """Ids where they are read: on the GPU what fits there easily, at 4 bytes a character; else where they are."""
    if isinstance(ids, Tensor):
        return ids.to(device)
    if device.type == "cpu" or len(ids) > ON_DEVICE:
        return ids
    return torch.from_numpy(ids.astype(np.int32)).to(device)
