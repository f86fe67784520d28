"""`fastcells generate`: a run folder and prefixes in, text out."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from fastcells.charlm import checkpoint
from fastcells.charlm.choose import Choosing
from fastcells.charlm.corpus import read_corpus
from fastcells.charlm.decode import Reading
from fastcells.charlm.device import device_of
from fastcells.charlm.errors import InputError
from fastcells.charlm.generate import as_learned, encode_prefix, generate_batch, stream
from fastcells.charlm.runfolder import RunFolder
from fastcells.charlm.terminal import say
from fastcells.charlm.vocabulary import UNKNOWN, Vocabulary


def generate_command(options: argparse.Namespace) -> int:
    """Print the texts and return the exit status."""
    model, vocabulary, _ = checkpoint.load(options.run, device_of(options.device), impl=options.impl)
    if not RunFolder(Path(options.run)).metrics():
        warnings.warn(f"{options.run} has not finished one epoch: its weights have learned little", stacklevel=1)
    prefixes = _prefixes(options)
    for prefix in prefixes:
        _say_what_is_lost(vocabulary, prefix, options.unknown)
    temperature, draws = options.temperature, (options.top_k, options.top_p, options.min_p)
    if temperature is None:
        temperature = 0.0 if draws == (None, None, None) and options.samples == 1 else 1.0
    choosing = Choosing(temperature, *draws)
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    shared = {"stop": options.stop, "unknown": options.unknown, "generator": generator}
    if options.endless:
        if len(prefixes) * options.samples > 1:
            raise InputError("--endless goes with one prefix and one sample")
        say(vocabulary.decode(encode_prefix(vocabulary, prefixes[0], unknown=options.unknown).tolist()), end="")
        for text in stream(model, vocabulary, prefixes[0], choosing, **shared):
            say(text, end="")
        say("")
        return 0
    texts: list[str] = []
    if len(prefixes) * options.samples == 1:  # a step in C
        begin = vocabulary.decode(encode_prefix(vocabulary, prefixes[0], unknown=options.unknown).tolist())
        texts = [begin + "".join(stream(model, vocabulary, prefixes[0], choosing, length=options.length, **shared))]
    else:
        texts = generate_batch(model, vocabulary, prefixes, options.length, choosing, samples=options.samples, **shared)
    say(("\n---\n" if "\n" in vocabulary.characters else "\n").join(texts))
    return 0


def _prefixes(options: argparse.Namespace) -> list[str]:
    prefixes: list[str] = options.prefix or []
    for name in options.prefix_file or []:
        text = read_corpus(name, reading=Reading(newlines="keep", control="keep"))
        prefixes = [*prefixes, text.removesuffix("\n") or text]  # an editor's newline at the end of a file
    if not prefixes:
        raise InputError("there is nothing to go on from: give --prefix or --prefix-file")
    return prefixes


def _say_what_is_lost(vocabulary: Vocabulary, prefix: str, unknown: str) -> None:
    """A warning that names the characters of a prefix that the model has never seen, where they are no error."""
    lost = vocabulary.unknown(as_learned(vocabulary, prefix))
    if lost and unknown != "error":
        shown = " ".join(lost[:20]) + (" ..." if len(lost) > 20 else "")
        what = "left out of the prefix" if unknown == "skip" else f"written as {UNKNOWN} in the prefix"
        say(f"fastcells: warning: {what}, since the model never saw them: {shown}", file=sys.stderr)
