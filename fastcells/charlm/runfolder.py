"""A run folder: configuration, vocabulary, ids, weights, checkpoint and metrics, in formats that any tool reads."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors
from torch import Tensor

from fastcells.charlm.encode import Encoded, encode
from fastcells.charlm.epoch import Epoch, perplexity
from fastcells.charlm.errors import InputError
from fastcells.charlm.evaluate import bits
from fastcells.charlm.files import replace_json, replace_tensors
from fastcells.charlm.idfile import open_ids
from fastcells.charlm.journal import Journal, Table
from fastcells.charlm.model import CharLM
from fastcells.charlm.place import Place
from fastcells.charlm.presets import Config
from fastcells.charlm.vocabulary import Vocabulary

CONFIG, VOCABULARY, WEIGHTS, METRICS = "config.json", "vocabulary.json", "weights.safetensors", "metrics.csv"
IDS, CHECKPOINT, PROGRESS, LOG = "ids.npy", "checkpoint.safetensors", "progress.csv", "log.txt"
OF_EPOCH = ("epoch", "perplexity", "loss", "valid_perplexity", "valid_loss", "valid_bits")
COLUMNS = (*OF_EPOCH, "learning_rate", "tokens_per_second", "seconds")
BY_TIME = ("seconds", "step", "epoch", "loss", "valid_loss", "learning_rate", "tokens_per_second")


class RunFolder:
    """The files of one run. `create` starts a new one, `open` finds one, `load` reads a model for use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_epoch, self.by_time = Table(path / METRICS, COLUMNS), Table(path / PROGRESS, BY_TIME)
        self.log = Journal(path / LOG)
        self.described: tuple[Config, Vocabulary, dict[str, str]] | None = None
        self._made: list[Path] = []

    @classmethod
    def claim(cls, path: str | Path) -> RunFolder:
        """A new, empty folder, so that no other run takes the name.

        Raises:
            FileExistsError: there is something at `path` already; it is left as it is.
        """
        run = cls(Path(path))
        run._made = [run.path, *(parent for parent in run.path.parents if not parent.exists())]
        try:
            run.path.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"{path} exists already: name another folder with --out, or remove it") from None
        return run

    @classmethod
    def create(cls, path: str | Path, config: Config, vocabulary: Vocabulary, provenance: dict[str, str]) -> RunFolder:
        """A new folder with configuration, vocabulary and an empty metrics file. Raises FileExistsError, as `claim`."""
        run = cls.claim(path)
        run.describe(config, vocabulary, provenance)
        return run

    @classmethod
    def find(cls, path: str | Path) -> RunFolder:
        """A folder that is there.

        Raises:
            FileNotFoundError: it is not there, or no run had begun in it.
        """
        if not Path(path).is_dir():
            raise FileNotFoundError(f"no such run folder: {path}")
        if not (Path(path) / CONFIG).is_file():
            raise FileNotFoundError(f"{path} is no run: {CONFIG} is missing; remove it and train anew")
        return cls(Path(path))

    def describe(self, config: Config, vocabulary: Vocabulary, provenance: Mapping[str, str]) -> None:
        """Write vocabulary and configuration; with the latter the folder is a run."""
        self.described = config, vocabulary, dict(provenance)
        replace_json(self.path / VOCABULARY, vocabulary.characters)
        replace_json(self.path / CONFIG, {**asdict(config), "provenance": dict(provenance)})

    def description(self) -> tuple[Config, Vocabulary, dict[str, str]]:
        """Configuration, vocabulary and provenance.

        Raises:
            FileNotFoundError: one is missing. InputError: one is damaged.
        """
        values, characters = (self._read_json(name) for name in (CONFIG, VOCABULARY))
        try:
            if not isinstance(values, dict):
                raise TypeError("it should hold one JSON object")
            provenance = values.pop("provenance", {})
            config = Config(**values)
            provenance = {str(key): str(value) for key, value in provenance.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path / CONFIG} is damaged: {error}") from error
        if not isinstance(characters, str) or not characters or characters != "".join(sorted(set(characters))):
            reason = "it should hold one string with every character once, sorted"
            raise InputError(f"{self.path / VOCABULARY} is damaged: {reason}")
        self.described = config, Vocabulary(characters), provenance
        return self.described

    def save_ids(self, pieces: Iterable[str], min_count: int = 1) -> Encoded:
        """Write a text's ids. The hash that is returned is what `ids` asks for. Raises as `encode`."""
        return encode(pieces, self.path / IDS, min_count=min_count)

    def ids(self, sha256: str | None) -> np.ndarray:
        """The corpus's ids, mapped. Raises FileNotFoundError or InputError, as `open_ids`."""
        return open_ids(self.path / IDS, sha256)

    def add_metrics(self, epoch: Epoch) -> None:
        """Append one epoch to the metrics file. Raises OSError; the row is written later then."""
        valid = epoch.valid
        self.by_epoch.add(
            {
                "epoch": epoch.number,
                "perplexity": epoch.perplexity,
                "loss": epoch.loss,
                "valid_perplexity": None if valid is None else perplexity(valid),
                "valid_loss": valid,
                "valid_bits": None if valid is None else bits(valid),
                "learning_rate": epoch.rate,
                "tokens_per_second": round(epoch.tokens_per_second, 1),
                "seconds": round(epoch.seconds, 3),
            }
        )

    def metrics(self) -> list[dict[str, float]]:
        """The metrics file: one dict an epoch, by column name."""
        return self.by_epoch.rows()

    def go_back_to(self, place: Place) -> None:
        """Drop what was measured after `place`: it is about to be measured again."""
        self.by_epoch.keep(lambda row: row.get("epoch", math.inf) <= place.epoch)
        self.by_time.keep(lambda row: row.get("step", math.inf) <= place.step)

    def save_weights(self, weights: CharLM | Mapping[str, Tensor]) -> None:
        """Write a model's weights, whole or not at all. Raises OSError."""
        replace_tensors(self.path / WEIGHTS, weights.state_dict() if isinstance(weights, CharLM) else weights)

    def weights(self) -> dict[str, Tensor]:
        """The weights. Raises FileNotFoundError or InputError."""
        return self._read_tensors(WEIGHTS)[0]

    def save_checkpoint(self, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        """Write what `snapshot.take` returned, whole or not at all. Raises OSError."""
        replace_tensors(self.path / CHECKPOINT, tensors, {"run": json.dumps(values)})

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """What `snapshot.restore` takes. Raises FileNotFoundError or InputError."""
        tensors, metadata = self._read_tensors(CHECKPOINT)
        try:
            values = json.loads(metadata["run"])
            if not isinstance(values, dict):
                raise ValueError("its description is not a JSON object")
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(f"{self.path / CHECKPOINT} is damaged: {error}") from error
        return tensors, values

    def discard(self) -> None:
        """Remove what this run wrote, and the folders made for it: nothing was learned, and the name shall be free."""
        names = (CONFIG, VOCABULARY, WEIGHTS, METRICS, IDS, CHECKPOINT, PROGRESS, LOG)
        for name in names:
            for path in self.path.glob(f"{name}*"):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else has come into one of them
            for folder in self._made or [self.path]:
                folder.rmdir()

    def _read_json(self, name: str) -> object:
        path = self._existing(name)
        try:
            return json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {error}") from error

    def _read_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        path = self._existing(name)
        try:
            with safetensors.safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{path} is damaged: {reason}") from error

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is not a finished run: {name} is missing")
        return path
