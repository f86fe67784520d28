"""A corpus of any length to a file of ids, read once: the memory that it takes does not grow with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcells.charlm.errors import InputError
from fastcells.charlm.files import PARTIAL
from fastcells.charlm.idfile import PIECE, id_type, write_ids
from fastcells.charlm.vocabulary import UNKNOWN, Vocabulary, codes_of

CODES = 0x110000  # code points of Unicode


@dataclass(frozen=True)
class Encoded:
    """What was written."""

    vocabulary: Vocabulary
    length: int
    sha256: str
    head: str  # the beginning of the text
    rare: int  # characters that were folded into one


def encode(pieces: Iterable[str], path: Path, *, min_count: int = 1) -> Encoded:
    """Write the ids of a text to `path` (.npy). Characters that occur less than `min_count` times become one symbol.

    The characters are numbered as they come, in a file beside it; when all are known, in their order.

    Raises:
        InputError: as `pieces` raises it. OSError: the disk is full, or the like.
    """
    draft = path.with_name(f"{path.name}.draft{PARTIAL}")
    try:
        numbered = _Numbered(draft)
        head = ""
        for text in _even(pieces):
            head = head or text[:1000]
            numbered.add(codes_of(text))
        characters, table = _ordered(numbered, min_count)
        vocabulary = Vocabulary(characters)
        renumbered = (table[piece] for piece in numbered.pieces())
        sha256 = write_ids(path, renumbered, id_type(len(vocabulary)))
        rare = numbered.known - len(vocabulary) + (UNKNOWN in characters and min_count > 1)
        return Encoded(vocabulary, numbered.length, sha256, head, rare)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


class _Numbered:
    """A file of the characters' numbers, in the order in which they first came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dtype: np.dtype = np.dtype(np.uint16)
        self.numbers = np.full(CODES, -1, np.int32)  # by code point
        self.counts = np.zeros(CODES, np.int64)
        self.codes = np.zeros(0, np.uint32)  # by number
        self.length = 0
        self.path.write_bytes(b"")

    @property
    def known(self) -> int:
        """How many characters there are."""
        return len(self.codes)

    def add(self, codes: np.ndarray) -> None:
        counts = np.bincount(codes)
        self.counts[: len(counts)] += counts
        present = np.flatnonzero(counts)
        new = present[self.numbers[present] < 0]
        self.numbers[new] = np.arange(self.known, self.known + len(new))
        self.codes = np.concatenate([self.codes, new.astype(np.uint32)])
        if self.known > 1 << 16 and self.dtype == np.uint16:
            self._widen()
        with self.path.open("ab") as file:
            file.write(self.numbers[codes].astype(self.dtype).data)
        self.length += len(codes)

    def pieces(self) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            while data := file.read(PIECE * self.dtype.itemsize):
                yield np.frombuffer(data, self.dtype)

    def _widen(self) -> None:
        wider = self.path.with_name(self.path.name + ".wider")
        with wider.open("wb") as file:
            for piece in self.pieces():
                file.write(piece.astype(np.uint32).data)
        wider.replace(self.path)
        self.dtype = np.dtype(np.uint32)


def _ordered(numbered: _Numbered, min_count: int) -> tuple[str, np.ndarray]:
    """The vocabulary's characters, and the id of each number."""
    counts = numbered.counts[numbered.codes]
    common = np.sort(numbered.codes[counts >= min_count])
    rare = len(common) < numbered.known
    if rare and not len(common):
        raise InputError(f"no character occurs {min_count} times, as --min-count asks for: nothing is left to learn")
    if rare:
        common = np.union1d(common, [np.uint32(ord(UNKNOWN))]).astype(np.uint32)
    ids = np.searchsorted(common, numbered.codes).clip(max=len(common) - 1)
    known = common[ids] == numbered.codes
    if rare:
        ids[~known] = np.searchsorted(common, ord(UNKNOWN))
    return "".join(map(chr, common)), ids.astype(np.uint32)


def _even(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of a handy size: a file of few bytes costs as much as one of a million."""
    waiting: list[str] = []
    length = 0
    for text in pieces:
        waiting.append(text)
        length += len(text)
        if length >= PIECE // 4:
            yield "".join(waiting)
            waiting, length = [], 0
    if length:
        yield "".join(waiting)
