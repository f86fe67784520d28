"""`fastcells generate`: a run folder and a prefix in, text out."""

from __future__ import annotations

import argparse

import torch

from fastcells.charlm import checkpoint
from fastcells.charlm.device import device_of
from fastcells.charlm.generate import generate
from fastcells.charlm.terminal import say


def generate_command(options: argparse.Namespace) -> int:
    """Print the text and return the exit status."""
    model, vocabulary, _ = checkpoint.load(options.run, device_of(options.device), impl=options.impl)
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.top_k is None else 1.0
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    text = generate(
        model,
        vocabulary,
        options.prefix,
        options.length,
        temperature=temperature,
        top_k=options.top_k,
        unknown=options.unknown,
        generator=generator,
    )
    say(text)
    return 0
