"""`fastcells tune`: trials ahead of time, also of the layer of a trained model."""

from __future__ import annotations

import argparse

import torch

from fastcells.charlm import checkpoint
from fastcells.charlm.device import device_of
from fastcells.tuning import command


def tune_command(options: argparse.Namespace) -> int:
    """Print the table and return the exit status."""
    device, model = device_of(options.device), None
    if options.model is not None:
        trained, _, config = checkpoint.load(options.model, device)
        ids = torch.zeros(config.steps, config.batch, dtype=torch.int64, device=device)
        model = (trained.layer, ids)
    return command.run(options, device, model)
