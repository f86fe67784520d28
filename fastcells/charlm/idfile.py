"""A corpus as a file of token ids (.npy), written piece by piece and read through memory mapping."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from fastcells.charlm.errors import InputError
from fastcells.charlm.files import new_file

PIECE = 1 << 22  # ids that are in memory at a time
LARGE = 1 << 26  # bytes of ids that are not left in memory


def id_type(vocabulary: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds the ids of so many characters."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def write_ids(path: Path, pieces: Iterable[np.ndarray], dtype: np.dtype) -> str:
    """Write ids to `path`, whole or not at all. Returns their SHA-256.

    Raises:
        OSError: the file cannot be written.
    """
    digest, length = hashlib.sha256(), 0
    with new_file(path) as file:
        _header(file, dtype, 0)
        for piece in pieces:
            data = np.ascontiguousarray(piece, dtype).data
            digest.update(data)
            file.write(data)
            length += len(data)
        file.seek(0)
        _header(file, dtype, length)
    return digest.hexdigest()


def open_ids(path: Path, sha256: str | None) -> np.ndarray:
    """The ids, mapped from the file: pages are read when they are used.

    sha256: the hash that they have to have; None for what was written just now.

    Raises:
        FileNotFoundError: there is no such file. InputError: it is not what `write_ids` wrote.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it holds the corpus as ids")
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            if dtype not in (np.uint16, np.uint32) or len(shape) != 1:
                raise ValueError(f"ids of type {dtype} and shape {shape}")
            if os.fstat(file.fileno()).st_size != start + shape[0] * dtype.itemsize or not shape[0]:
                raise ValueError("its length is not what its header says")
            digest = hashlib.sha256()
            while sha256 is not None and (data := file.read(PIECE)):
                digest.update(data)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ValueError("its hash is not that of the run")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (ValueError, TypeError, KeyError, SyntaxError, OverflowError, TokenError) as error:  # of a header
        raise InputError(f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    ids: np.ndarray = np.frombuffer(mapped, dtype, offset=start)
    return ids


def release(ids: object) -> None:
    """Give back the pages of mapped ids that have been read, if they are many; what is used again is read again."""
    if getattr(ids, "nbytes", 0) < LARGE:
        return
    base = getattr(ids, "base", None)
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        with suppress(OSError, ValueError):
            base.madvise(mmap.MADV_DONTNEED)


def _header(file: IO[bytes], dtype: np.dtype, length: int) -> None:
    # Version 1.0 leaves room for the length to grow, so that it can be written when it is known.
    description = np.lib.format.dtype_to_descr(dtype)
    fields = {"descr": description, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, fields)
