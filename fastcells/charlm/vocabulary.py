"""Characters and their token ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fastcells.charlm.errors import InputError

UNKNOWN = "\ufffd"  # stands for all that were too rare
WAYS = ("error", "skip", "replace")


class Vocabulary:
    """The distinct characters of a text, sorted, so that the same text always gives the same ids."""

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._codes = codes_of(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, *, unknown: str = "error", offset: int = 0) -> Tensor:
        """int64 [len(text)]. A character outside the vocabulary raises InputError, or with "skip" is left out.

        unknown: "replace" takes the symbol for rare characters instead, where there is one (`--min-count`).
        offset: of the text in a longer one, for the position that an error names.
        """
        if unknown not in WAYS:
            raise InputError(f"unknown must be 'error', 'skip' or 'replace', got {unknown!r}")
        if unknown == "replace" and UNKNOWN not in self.characters:
            raise InputError("--unknown replace needs a model that has a symbol for it: train with --min-count")
        codes = codes_of(text)
        if not len(self):
            return torch.zeros(0, dtype=torch.int64)
        ids = np.searchsorted(self._codes, codes).clip(max=len(self) - 1)
        known = self._codes[ids] == codes
        if not known.all():
            if unknown == "error":
                self._refuse(text, int(known.argmin()), offset)
            ids = ids[known] if unknown == "skip" else np.where(known, ids, self.characters.index(UNKNOWN))
        return torch.from_numpy(ids.astype(np.int64))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""
        return "".join(self.characters[i] for i in ids)

    def unknown(self, text: str) -> str:
        """The characters of a text that are not in the vocabulary, each once, in their order."""
        return "".join(dict.fromkeys(c for c in text if c not in self.characters))

    def _refuse(self, text: str, position: int, offset: int) -> None:
        character, way = text[position], "--unknown skip leaves such characters out"
        if UNKNOWN in self.characters:
            way += f", --unknown replace takes {UNKNOWN} for them"
        raise InputError(
            f"character {character!r} (U+{ord(character):04X}) at position {offset + position} does not occur in the "
            f"corpus that the model learned; {way}"
        )


def codes_of(text: str) -> np.ndarray:
    """uint32 [len(text)]: the code points."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
