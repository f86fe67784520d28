"""The files that hold the rules of defined cells: one a cell in the user's cache folder, which a person can read.

Triton wants the source of what it compiles in a file. A file's name has a hash of its text, so that it says what a
cell's equations and this version's generator say, or is written again.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from fastcells.cache_folder import cache_folder, write_whole

log = logging.getLogger("fastcells")


def load(name: str, text: str) -> ModuleType:
    """A module of this text, from its file, which is written if it is not there or not whole."""
    path = _written(f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py", text)
    module = ModuleType(f"fastcells_cells.{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where `inspect` looks for a function's home
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def _written(name: str, text: str) -> Path:
    try:
        return _in(cache_folder() / "cells", name, text)
    except OSError as error:
        log.warning("%s is kept by this process alone, since the cache folder cannot be written: %s", name, error)
        return _in(_own_folder(), name, text)


def _in(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if not _holds(path, text):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return path


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text("utf-8") == text
    except (FileNotFoundError, UnicodeDecodeError):
        return False


@cache
def _own_folder() -> Path:
    """Removed with the process."""
    folder = tempfile.mkdtemp(prefix="fastcells-cells-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
