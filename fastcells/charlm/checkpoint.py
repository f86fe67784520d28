"""A trained model out of its run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

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
        with torch.device("meta"):  # no memory, no random numbers: the weights are about to come
            model = CharLM(len(vocabulary), replace(config, impl=impl))
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{run.path / WEIGHTS} is damaged or belongs to another model: {reason}") from error
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{run.path / WEIGHTS} holds weights that are not finite")
    return model.to(device, dtype_of(config)).eval(), vocabulary, config
