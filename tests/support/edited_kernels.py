"""The kernels' text with something changed in it: what a test that cannot fail would not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from fastcells.kernels.triton import launch


@contextmanager
def edited(launchers: ModuleType, file: str, old: str, new: str, folder: Path) -> Iterator[None]:
    """The launchers launch a file's kernels with another text in the place of `old`, which stands there once.

    folder: where the changed file is written; Triton reads a kernel's text from it.
    """
    text = Path(launch.__file__).with_name(file).read_text("utf-8")
    assert text.count(old) == 1, f"{text.count(old)} times in {file}: {old}"
    path = folder / f"edited_{file}"
    path.write_text(text.replace(old, new), "utf-8")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := module_from_spec(spec))
    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in vars(module).items():
            if name.endswith("_kernel") and hasattr(launchers, name):
                patch.setattr(launchers, name, kernel)
        yield
