"""Files that are whole or not there: an interruption at any moment leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import safetensors.torch
from torch import Tensor

PARTIAL = ".partial"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write into; at the end it is handed to the disk and gets the name `path`.

    Raises:
        OSError: it cannot be written. What was at `path` is still there, after any other exception too.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """A file with `data`, whole or not at all. Raises OSError, as `new_file`."""
    with new_file(path) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Hand a folder's names to the disk; where folders cannot be opened, the system does it in its own time."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):  # some file systems have no such call
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_json(path: Path, value: object) -> None:
    """`value` as readable JSON."""
    replace_file(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def replace_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors as safetensors. Its own writer would leave files of other names behind, and hides the system's error."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, safetensors.torch.save(plain, metadata))
