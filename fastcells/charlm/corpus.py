"""From a file to token ids: reading the text, and the vocabulary of its characters."""

from __future__ import annotations

import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from fastcells.charlm.errors import InputError

BUNDLED = {"zh": "lyrics_zh.txt", "en": "lyrics_en.txt"}


def read_corpus(path: str | Path, chars: int | None = None) -> str:
    """The text of a UTF-8 .txt file, of a .zip that holds one, or of standard input ("-").

    Newlines and carriage returns become spaces, a byte order mark is dropped, and the first `chars` characters are
    kept.

    Raises:
        FileNotFoundError: no such file. InputError: not UTF-8 (names the byte offset), a zip with no or several
        texts, an empty text, or chars below 1.
    """
    name = "standard input" if str(path) == "-" else str(path)
    return prepare(_decode(_read_bytes(path), name), name, chars)


def bundled_corpus(language: str, chars: int | None = None) -> str:
    """The lyrics that come with the package: "zh" (Chinese) or "en" (English), written for it."""
    if language not in BUNDLED:
        raise InputError(f"no bundled corpus {language!r}; there are {', '.join(BUNDLED)}")
    data = resources.files("fastcells.data").joinpath(BUNDLED[language]).read_bytes()
    return prepare(_decode(data, BUNDLED[language]), BUNDLED[language], chars)


def prepare(text: str, name: str, chars: int | None = None) -> str:
    """Newlines to spaces, the first `chars` characters. `name` is what an error calls the text."""
    if chars is not None and chars < 1:
        raise InputError(f"chars must be positive, got {chars}")
    text = text.replace("\n", " ").replace("\r", " ")[:chars]
    if not text:
        raise InputError(f"{name} is empty: there is nothing to learn from")
    return text


def _read_bytes(path: str | Path) -> bytes:
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        return sys.stdin.buffer.read()
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a corpus is a .txt file or a .zip that holds one")
    if not path.exists():
        raise FileNotFoundError(f"no such corpus: {path}")
    if path.suffix.lower() != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [n for n in archive.namelist() if n.lower().endswith(".txt") and not n.startswith("__MACOSX/")]
            if len(texts) != 1:
                found = ", ".join(texts) or "none"
                raise InputError(f"{path} must hold exactly one .txt file, found {len(texts)}: {found}")
            return archive.read(texts[0])
    except (zipfile.BadZipFile, RuntimeError, EOFError, lzma.LZMAError, zlib.error) as error:  # damaged, encrypted, ...
        raise InputError(f"{path} cannot be read as a zip archive: {error}") from error


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it, for example with iconv"
        ) from error


class Vocabulary:
    """The distinct characters of a text, sorted, so that the same text always gives the same ids."""

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, *, unknown: str = "error") -> Tensor:
        """int64 [len(text)]. A character outside the vocabulary raises InputError, or with "skip" is left out."""
        if unknown not in ("error", "skip"):
            raise InputError(f"unknown must be 'error' or 'skip', got {unknown!r}")
        if unknown == "error":
            for position, character in enumerate(text):
                if character not in self._ids:
                    raise InputError(
                        f"character {character!r} (U+{ord(character):04X}) at position {position} does not occur in "
                        "the corpus that the model learned; --unknown skip leaves such characters out"
                    )
        return torch.tensor([self._ids[c] for c in text if c in self._ids], dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""
        return "".join(self.characters[i] for i in ids)
