"""The text that is learned, piece by piece: files, folders, archives, standard input, or the bundled lyrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from fastcells.charlm import sources
from fastcells.charlm.decode import Reading, decode
from fastcells.charlm.errors import InputError

BUNDLED = {"zh": "lyrics_zh.txt", "en": "lyrics_en.txt"}


def read_corpus(path: str | Path, chars: int | None = None, reading: Reading | None = None) -> str:
    """The text of a file, a folder, a .gz, a .zip, or of standard input ("-"), as one string.

    reading: encoding, newlines and control characters; by default UTF-8, newlines as spaces, no control characters.
    chars: keep the first ones only.

    Raises:
        FileNotFoundError: no such file. InputError: what it holds is no text, or none at all; or chars below 1.
    """
    return "".join(corpus_pieces([str(path)], chars, reading or Reading()))


def bundled_corpus(language: str, chars: int | None = None, reading: Reading | None = None) -> str:
    """The lyrics that come with the package: "zh" (Chinese) or "en" (English), written for it."""
    return "".join(bundled_pieces(language, chars, reading or Reading()))


def corpus_pieces(paths: list[str], chars: int | None, reading: Reading) -> Iterator[str]:
    """The texts of some files, one after the other, each on a line of its own. Raises as `read_corpus`."""
    files = sources.find(paths)
    return _first(_joined(files, reading), chars, ", ".join("standard input" if p == "-" else p for p in paths))


def bundled_pieces(language: str, chars: int | None, reading: Reading) -> Iterator[str]:
    """As `corpus_pieces`, for the bundled lyrics."""
    if language not in BUNDLED:
        raise InputError(f"no bundled corpus {language!r}; there are {', '.join(BUNDLED)}")
    data = resources.files("fastcells.data").joinpath(BUNDLED[language]).read_bytes()
    # Ours are in UTF-8, whatever the user's are in.
    ours = Reading(newlines=reading.newlines, control=reading.control)
    return _first(decode([data], BUNDLED[language], ours), chars, BUNDLED[language])


def _joined(files: list[Path], reading: Reading) -> Iterator[str]:
    newline = "\n" if reading.newlines == "keep" else " "
    last = newline
    for file in files:
        for name, data in sources.streams(file):
            begun = False
            for text in decode(data, name, reading):
                if text and not begun and last != newline:
                    yield newline
                begun = begun or bool(text)
                last = text[-1:] or last
                yield text


def _first(pieces: Iterable[str], chars: int | None, name: str) -> Iterator[str]:
    """The first `chars` characters."""
    if chars is not None and chars < 1:
        raise InputError(f"chars must be positive, got {chars}")
    length = 0
    for text in pieces:
        text = text if chars is None else text[: chars - length]
        length += len(text)
        yield text
        if length == chars:
            return
    if not length:
        raise InputError(f"{name} is empty: there is nothing to learn from")
