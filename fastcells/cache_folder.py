"""Where files are kept that fastcells can make again: verdicts, and the kernels' rules of defined cells."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """FASTCELLS_CACHE_DIR, or the folder that this system has for it."""
    given = os.environ.get("FASTCELLS_CACHE_DIR")
    if given:
        return Path(given)
    import platformdirs  # a machine that says where needs no such package

    return Path(platformdirs.user_cache_dir("fastcells", appauthor=False))


def write_whole(path: Path, text: str) -> None:
    """A file that others read meanwhile: beside the old one, and then in its place."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
