"""All that a run needs to go on as if nothing had happened: tensors, and values for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from fastcells.charlm.divergence import Watch
from fastcells.charlm.errors import InputError
from fastcells.charlm.place import Place, numbers_of
from fastcells.charlm.training import Training

Snapshot = tuple[dict[str, Tensor], dict[str, object]]


def take(training: Training) -> Snapshot:
    """Weights, the best ones, the optimizer's state, the carried state, sums, random states; the place in the data.

    Of several processes all have to take it, and it is the same whatever their number: any number may go on.
    """
    world = training.world
    tensors = {f"model.{name}": tensor for name, tensor in training.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (training.best or {}).items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in training.optimizer.state().items()}
    if training.state is not None:
        states = training.state if isinstance(training.state, tuple) else (training.state,)
        tensors |= {f"state.{i}": world.all_rows(tensor, 1) for i, tensor in enumerate(states)}
    begun = training.place.step > 0  # before, the processes need not have met
    total = world.total(torch.stack([training.loss, training.unseen])) if begun else torch.zeros(2, dtype=torch.float64)
    tensors |= {"loss.epoch": total[0], "loss.unseen": total[1] / world.size}
    tensors |= {"random.torch": torch.get_rng_state(), "random.shuffle": training.shuffle_start}
    if training.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(training.device)
    return tensors, {"place": asdict(training.place), "watch": asdict(training.watch)}


def restore(training: Training, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
    """Let `training` go on from what `take` returned.

    Raises:
        InputError: it is not one, or one of another model or corpus.
    """
    try:
        _restore(training, tensors, values)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise InputError(f"it is damaged or belongs to another run: {reason}") from error


def _restore(training: Training, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "state": {}}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        parts.setdefault(part, {})[name] = tensor
    place = training.place = numbers_of(Place, values["place"])
    training.watch = numbers_of(Watch, values["watch"])
    if not (place.done < training.per_epoch and place.step == place.epoch * training.per_epoch + place.done):
        raise ValueError("its place does not lie in this corpus")
    training.model.load_state_dict(parts["model"])
    training.first, training.first_step = training.weights(), place.step
    if parts["best"]:
        training.model.load_state_dict(parts["best"])  # the same checks
        training.best = training.weights()
        training.model.load_state_dict(parts["model"])
    training.optimizer.restore(parts["optimizer"])
    world = training.world
    states = [world.rows(parts["state"][str(i)], 1).to(training.parameters[0]) for i in range(len(parts["state"]))]
    training.state = None if not states else states[0] if len(states) == 1 else tuple(states)
    training.loss.copy_(parts["loss"]["epoch"] / world.size)
    training.unseen.copy_(parts["loss"]["unseen"])
    training.shuffle.set_state(parts["random"]["shuffle"])
    torch.set_rng_state(parts["random"]["torch"])
    if not world.leads:  # its rows have a dropout of their own
        torch.manual_seed(training.config.seed + world.rank + 1_000_003 * place.step)
    if training.device.type == "cuda" and "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"], training.device)
