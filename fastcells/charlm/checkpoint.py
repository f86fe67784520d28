"""A run folder: configuration, vocabulary, weights and metrics, in formats that any tool reads; no pickle."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

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

    def save_weights(self, model: CharLM) -> None:
        """Write the weights under another name first, so that an interruption leaves the old ones whole."""
        partial = self.path / (WEIGHTS + ".partial")
        save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}, partial)
        os.replace(partial, self.path / WEIGHTS)

    def _write_json(self, name: str, value: object) -> None:
        (self.path / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[CharLM, Vocabulary, Config]:
    """The model, vocabulary and configuration of a run folder.

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
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error
    try:
        characters = json.loads((folder / VOCABULARY).read_text("utf-8"))
        if not isinstance(characters, str) or not characters:
            raise ValueError("it should hold one string with every character")
    except ValueError as error:
        raise InputError(f"{folder / VOCABULARY} is damaged: {error}") from error
    vocabulary = Vocabulary(characters)
    model = CharLM(len(vocabulary), config).to(dtype_of(config))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged or belongs to another model: {error}") from error
    return model.to(device).eval(), vocabulary, config
