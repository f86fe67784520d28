"""A trained model out of its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastcells.charlm.errors import InputError
from fastcells.charlm.model import CharLM, dtype_of
from fastcells.charlm.presets import Config
from fastcells.charlm.runfolder import WEIGHTS, RunFolder
from fastcells.charlm.vocabulary import Vocabulary


def load(
    path: str | Path, device: torch.device | str = "cpu", *, impl: str = "auto"
) -> tuple[CharLM, Vocabulary, Config]:
    """The model, vocabulary and configuration of a run folder.

    impl: implementation of the recurrent layer; a run that was trained with Triton can be used without.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing. InputError: a file is damaged.
    """
    run = RunFolder.find(path)
    config, vocabulary, _ = run.description()
    weights = run.weights()
    try:
        model = model_of(weights, len(vocabulary), replace(config, impl=impl))
    except InputError as error:
        raise InputError(f"{run.path / WEIGHTS} {error}") from error
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{run.path / WEIGHTS} holds weights that are not finite")
    return model.to(device, dtype_of(config)).eval(), vocabulary, config


def model_of(weights: Mapping[str, Tensor], vocabulary: int, config: Config) -> CharLM:
    """A model that has these weights. It takes no memory and draws no random numbers.

    Raises:
        InputError: they are not those of such a model; it says "is damaged or ...".
    """
    try:
        if config.layers > len(weights):  # or as many would be made before they are compared
            raise ValueError(f"it has too few weights for {config.layers} layers")
        with torch.device("meta"):
            model = CharLM(vocabulary, config)
        model.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError, OverflowError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"is damaged or belongs to another model: {reason}") from error
    return model
