"""The C library's allocator in a process that does nothing but train."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST_MMAP_THRESHOLD = 1 << 25
_KEPT = 1 << 29  # bytes


def keep_freed_memory() -> bool:
    """Let glibc keep up to 512 MB of what torch frees for its next tensors. Returns whether it does.

    It gives large tensors back to the system otherwise and gets them anew in the next step, zeroed, page by page: a
    tenth of a small model's training step, or more. Whoever sets one of malloc's environment variables is left alone,
    and so is any other C library.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  others have a mallopt that means something else
        return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and libc.mallopt(_TRIM_THRESHOLD, _KEPT))
    except (AttributeError, OSError, TypeError):
        return False
