"""Where a corpus comes from: files, folders, globs, .gz, .zip and standard input, each opened as a stream of bytes."""

from __future__ import annotations

import contextlib
import glob
import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fastcells.charlm.errors import InputError

PIECE = 1 << 20  # bytes that are read at a time
# Text packs to a third or a tenth; a bomb to a thousandth. What unpacks to little does no harm.
LARGEST_RATIO, HARMLESS = 200, 1 << 26


def find(paths: list[str]) -> list[Path]:
    """The files that some paths, folders and globs mean: as given, and sorted by name within each. "-" stays.

    Raises:
        FileNotFoundError: a path does not exist. InputError: a folder or glob without a text.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if name == "-":
            files.append(path)
        elif path.is_dir():
            texts = [p for p in path.rglob("*") if p.is_file() and _is_text(p.name) and not _is_hidden(p, path)]
            if not texts:
                raise InputError(f"{path} is a folder without a .txt file; a glob finds others: '{path}/**/*.py'")
            files += sorted(texts)
        elif path.exists():
            files.append(path)
        elif glob.has_magic(name):
            found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if not found:
                raise InputError(f"no file is called {name}")
            files += found
        else:
            raise FileNotFoundError(f"no such corpus: {name}")
    if files.count(Path("-")) > 1:
        raise InputError("standard input can be read once")
    return files


def streams(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The texts of a file, each as its name and its bytes piece by piece: of a .zip all .txt members, by name.

    Raises:
        InputError: an archive that is damaged, holds no text or would unpack to far more than it is.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        yield "standard input", _pieces(sys.stdin.buffer)
    elif path.suffix.lower() == ".zip":
        yield from _members(path)
    elif path.suffix.lower() == ".gz":
        yield str(path), _unpacked(path)
    else:
        with path.open("rb") as file:
            yield str(path), _pieces(file)


def _members(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    with _named(path, "zip archive"), zipfile.ZipFile(path) as archive:
        members = sorted((m for m in archive.infolist() if _is_member(m)), key=lambda member: member.filename)
        if not members:
            held = ", ".join(name for name in archive.namelist()[:5]) or "nothing"
            raise InputError(f"{path} holds no .txt file; it holds {held}")
        for member in members:
            if member.file_size > HARMLESS and member.file_size > LARGEST_RATIO * max(1, member.compress_size):
                raise _bomb(f"{path}: {member.filename}", member.file_size, member.compress_size)
        for member in members:
            with archive.open(member) as file:
                yield f"{path}: {member.filename}", _careful(file, f"{path}: {member.filename}", "zip archive")


def _unpacked(path: Path) -> Iterator[bytes]:
    packed, length = path.stat().st_size, 0
    with _named(path, "gzip file"), gzip.open(path) as file:
        for piece in _pieces(file):
            length += len(piece)
            if length > HARMLESS and length > LARGEST_RATIO * packed:
                raise _bomb(str(path), length, packed)
            yield piece


def _careful(file: IO[bytes], name: str, kind: str) -> Iterator[bytes]:
    with _named(name, kind):
        yield from _pieces(file)


def _pieces(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


@contextlib.contextmanager
def _named(name: str | Path, kind: str) -> Iterator[None]:
    """What goes wrong in an archive, with its name."""
    damaged = (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error, NotImplementedError)
    try:
        yield
    except (*damaged, RuntimeError, ValueError, OSError) as error:  # RuntimeError: it is encrypted
        if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise InputError(f"{name} cannot be read as a {kind}: {error or type(error).__name__}") from error


def _bomb(name: str, length: int, packed: int) -> InputError:
    return InputError(
        f"{name} would unpack to {length:,} bytes or more, from {packed:,}: no text packs so well. Unpack it yourself "
        "if it is one"
    )


def _is_text(name: str) -> bool:
    return name.lower().endswith((".txt", ".txt.gz")) and not name.startswith(("._", "."))


def _is_member(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return (
        not member.is_dir() and "__MACOSX" not in path.parts and _is_text(path.name) and path.suffix.lower() == ".txt"
    )


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
