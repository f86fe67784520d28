"""What `fastcells train` needs before the first step: a new run with its folder, or one that goes on."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import fastcells
from fastcells.charlm import presets, snapshot
from fastcells.charlm.checkpoint import model_of
from fastcells.charlm.corpus import bundled_pieces, corpus_pieces
from fastcells.charlm.decode import Reading
from fastcells.charlm.device import device_of
from fastcells.charlm.errors import InputError
from fastcells.charlm.evaluate import split
from fastcells.charlm.generate import encode_prefix
from fastcells.charlm.model import CharLM, dtype_of
from fastcells.charlm.runfolder import CHECKPOINT, CONFIG, RunFolder
from fastcells.charlm.sampling import Ids, check_length
from fastcells.charlm.training import Training
from fastcells.charlm.vocabulary import UNKNOWN, Vocabulary
from fastcells.charlm.world import World, restarted
from fastcells.dispatch import explain

BUNDLED_PREFIXES = {"zh": ["我们", "风吹过来"], "en": ["and the", "goodbye to the"]}
NEW = ("corpus", "bundled", "preset", "out", "chars")  # what only a run that begins may be given
CHANGEABLE = ("epochs", "report", "lr", "schedule", "warmup", "clip", "patience", "impl")  # in a run that goes on


@dataclass
class Job:
    """What there is once everything is in order, and training may begin."""

    run: RunFolder
    training: Training
    vocabulary: Vocabulary
    prefixes: list[str]
    name: str  # of the corpus
    runs_on: str  # which implementation


def prepare(options: argparse.Namespace, stack: contextlib.ExitStack, world: World) -> Job:
    """The same job in every process: number 0 begins or finds it, and the others read what it wrote."""
    if restarted() and options.out and (Path(options.out) / CONFIG).is_file():
        options = argparse.Namespace(**{**vars(options), **dict.fromkeys(NEW), "resume": options.out})
    if not world.leads:
        path = world.told(None)
        if path is None:  # number 0 has said what is wrong
            raise SystemExit(2)
        return _resumed(argparse.Namespace(**{**vars(options), **dict.fromkeys(NEW), "resume": path}), stack, world)
    try:
        job = _resumed(options, stack, world) if options.resume else _begun(options, stack, world)
    except BaseException:
        world.told(None)
        raise
    world.told(str(job.run.path))
    return job


def _begun(options: argparse.Namespace, stack: contextlib.ExitStack, world: World) -> Job:
    """A new run, with its folder; that is removed again if something is wrong with the input."""
    preset = options.preset or "gru"
    config = replace(presets.preset(preset), **_given(options))
    device = device_of(options.device)
    reading = reading_of(options)
    if options.corpus and options.bundled:
        raise InputError(f"a corpus ({options.corpus[0]}) or --bundled, not both")
    bundled = None if options.corpus else options.bundled or "zh"
    name = bundled or ", ".join(options.corpus)
    if bundled:
        pieces = bundled_pieces(bundled, options.chars, reading)
    else:
        pieces = corpus_pieces(options.corpus, options.chars, reading)
    run = RunFolder.claim(options.out or _unused_folder(preset))
    try:
        _alone(run, stack)
        text = run.save_ids(pieces, options.min_count)
        prefixes = _prefixes(options, bundled, text.vocabulary, text.head)
        ids, size = run.ids(None), len(text.vocabulary)
        _check_length(ids, config)
        model, runs_on = _model(size, config, device)
        training = Training(ids, size, config, device=device, model=model, world=world)
        run.save_weights(model)
        run.save_checkpoint(*snapshot.take(training))
        provenance = {
            "corpus": name,
            "characters": str(text.length),
            "ids": text.sha256,
            "newlines": reading.newlines,
            "device": str(device),
            "fastcells": fastcells.__version__,
            "torch": torch.__version__,
        }
        run.describe(config, text.vocabulary, provenance)
    except BaseException:
        with contextlib.suppress(OSError):
            run.discard()
        raise
    if text.rare:
        warnings.warn(
            f"{text.rare:,} characters are rarer than {options.min_count}: each is {UNKNOWN} now", stacklevel=1
        )
    return Job(run, training, text.vocabulary, prefixes, name, runs_on)


def _resumed(options: argparse.Namespace, stack: contextlib.ExitStack, world: World) -> Job:
    """A run that was interrupted, where its checkpoint is."""
    run = RunFolder.find(options.resume)
    if world.leads:
        _alone(run, stack)
    config, vocabulary, provenance = run.description()
    given = _given(options)
    for option in NEW:
        if getattr(options, option):
            raise InputError(f"--resume goes on with a run as it was begun: {option} is for a new one")
    for option, value in given.items():
        if option not in CHANGEABLE and value != getattr(config, option):
            raise InputError(
                f"--{option.replace('_', '-')} cannot be changed by --resume; what can is " + ", ".join(CHANGEABLE)
            )
    config = replace(config, **given)
    tensors, values = run.checkpoint()
    weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    try:
        model_of(weights, len(vocabulary), config)
    except InputError as error:
        raise InputError(f"{run.path / CHECKPOINT} {error}") from error
    device = device_of(options.device)
    ids = run.ids(provenance.get("ids", ""))
    _check_length(ids, config)
    model, runs_on = _model(len(vocabulary), config, device)
    training = Training(ids, len(vocabulary), config, device=device, model=model, world=world)
    try:
        snapshot.restore(training, tensors, values)
    except InputError as error:
        raise InputError(f"{run.path / CHECKPOINT}: {error}") from error
    if given and world.leads:
        run.describe(config, vocabulary, provenance)
    if world.leads:
        run.go_back_to(training.place)
    name = provenance.get("corpus", "")
    bundled = name if name in BUNDLED_PREFIXES else None
    prefixes = _prefixes(options, bundled, vocabulary, vocabulary.decode(ids[:1000].tolist()))
    return Job(run, training, vocabulary, prefixes, name, runs_on)


def _check_length(ids: Ids, config: presets.Config) -> None:
    """Raise InputError if what is to be learned does not fill one batch."""
    check_length(len(split(ids, config.validation, config.test)[0]), config.sampling, config.batch, config.steps)


def _model(vocabulary: int, config: presets.Config, device: torch.device) -> tuple[CharLM, str]:
    """A fresh model, and which implementation runs it."""
    try:
        torch.manual_seed(config.seed)
        model = CharLM(vocabulary, config).to(device, dtype_of(config))
        example = torch.zeros(config.batch, config.steps, dtype=torch.int64, device=device)
        return model, str(explain(model.layer, example))
    except (RuntimeError, OverflowError, TypeError) as error:  # out of memory, or an impl that cannot run here
        raise InputError(str(error).splitlines()[0]) from error


def _prefixes(options: argparse.Namespace, bundled: str | None, vocabulary: Vocabulary, head: str) -> list[str]:
    """What the reports' lines start with. head: the beginning of the text."""
    prefixes: list[str] = options.prefix or []
    if not prefixes:
        usual = BUNDLED_PREFIXES[bundled] if bundled else [(head.split() or [head])[0][:8]]
        prefixes = [p for p in usual if set(p) <= set(vocabulary.characters)] or [head[0]]
    for prefix in prefixes:
        encode_prefix(
            vocabulary, prefix, unknown=options.unknown
        )  # what is wrong with it is said now, not after the first epochs
    return prefixes


def reading_of(options: argparse.Namespace) -> Reading:
    """How the command line wants files to be read."""
    return Reading(options.encoding, options.newlines, options.control)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of a run's configuration."""
    given = {f.name: getattr(options, f.name) for f in fields(presets.Config) if getattr(options, f.name) is not None}
    if given.get("clip") == "none":
        given["clip"] = None
    return given


def _alone(run: RunFolder, stack: contextlib.ExitStack) -> None:
    """Hold the folder as long as this process trains in it. Raises InputError if another one does."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    descriptor = os.open(run.path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process is training in {run.path}") from None
    except OSError:  # a file system without locks
        return


def _unused_folder(preset: str) -> Path:
    number = 1
    while Path("runs", f"{preset}-{number}").exists():
        number += 1
    return Path("runs", f"{preset}-{number}")
