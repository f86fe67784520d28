"""A process beside the tests' own in which kernels are compiled: theirs has Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Run = Callable[..., Any]


@contextmanager
def worker() -> Iterator[Run]:
    """Yields run(function, *arguments): the function's result, or what it raised, from the other process."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _begin() -> None:
    os.environ.pop("TRITON_INTERPRET", None)  # before anything imports triton
    import torch

    torch.set_num_threads(1)
