"""A run folder: configuration, vocabulary, weights and metrics, in formats that any tool reads; no pickle."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastcells.charlm.corpus import Vocabulary
from fastcells.charlm.errors import InputError
from fastcells.charlm.model import CharLM, dtype_of
from fastcells.charlm.presets import Config
from fastcells.charlm.train import Epoch

CONFIG, VOCABULARY, WEIGHTS, METRICS = "config.json", "vocabulary.json", "weights.safetensors", "metrics.csv"
COLUMNS = ("epoch", "perplexity", "loss", "tokens_per_second", "seconds")


class RunFolder:
    """The files of one run. `create` starts a new one, `load` reads a finished one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path, config: Config, vocabulary: Vocabulary, provenance: dict[str, str]) -> RunFolder:
        """A new folder with configuration, vocabulary and an empty metrics file.

        Raises:
            FileExistsError: there is something at `path` already; it is left as it is.
        """
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"{path} exists already: name another folder with --out, or remove it") from None
        run._write_json(CONFIG, {**asdict(config), "provenance": provenance})
        run._write_json(VOCABULARY, vocabulary.characters)
        with (run.path / METRICS).open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)
        return run

    def add_metrics(self, epoch: Epoch) -> None:
        """Append one epoch to the metrics file."""
        row = (epoch.number, epoch.perplexity, epoch.loss, round(epoch.tokens_per_second, 1), round(epoch.seconds, 3))
        with (self.path / METRICS).open("a", newline="") as file:
            csv.writer(file).writerow(row)

    def metrics(self) -> list[dict[str, float]]:
        """The metrics file: one dict an epoch, by column name."""
        with (self.path / METRICS).open(newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def save_weights(self, weights: CharLM | Mapping[str, Tensor]) -> None:
        """Write a model's weights, under another name first, so that an interruption leaves the old ones whole."""
        weights = weights.state_dict() if isinstance(weights, CharLM) else weights
        partial = self.path / (WEIGHTS + ".partial")
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, partial)
            os.replace(partial, self.path / WEIGHTS)
        finally:
            partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what this run wrote: nothing was learned, and the name shall be free."""
        for name in (CONFIG, VOCABULARY, WEIGHTS, METRICS):
            (self.path / name).unlink(missing_ok=True)
        self.path.rmdir()

    def _write_json(self, name: str, value: object) -> None:
        (self.path / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


def load(
    path: str | Path, device: torch.device | str = "cpu", *, impl: str = "auto"
) -> tuple[CharLM, Vocabulary, Config]:
    """The model, vocabulary and configuration of a run folder.

    impl: implementation of the recurrent layer; a run that was trained with Triton can be used without.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing. InputError: a file is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such run folder: {path}")
    for name in (CONFIG, VOCABULARY, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{path} is not a finished run: {name} is missing")
    try:
        values = json.loads((folder / CONFIG).read_text("utf-8"))
        values.pop("provenance", None)
        config = Config(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error
    try:
        characters = json.loads((folder / VOCABULARY).read_text("utf-8"))
        if not isinstance(characters, str) or not characters or characters != "".join(sorted(set(characters))):
            raise ValueError("it should hold one string with every character once, sorted")
    except ValueError as error:
        raise InputError(f"{folder / VOCABULARY} is damaged: {error}") from error
    vocabulary = Vocabulary(characters)
    try:
        weights = load_file(folder / WEIGHTS)
        with torch.device("meta"):  # no memory, no random numbers: the weights are about to come
            model = CharLM(len(vocabulary), replace(config, impl=impl))
        model.load_state_dict(weights, assign=True)
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder / WEIGHTS} is damaged or belongs to another model: {reason}") from error
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{folder / WEIGHTS} holds weights that are not finite")
    return model.to(device, dtype_of(config)).eval(), vocabulary, config
