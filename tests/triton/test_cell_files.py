"""The files that hold generated rules: written whole, once, and never trusted for more than they say."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcells.kernels.triton import cell_file

TEXT = '"""A cell."""\n\n\ndef forward(x):\n    return x + 1\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCELLS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cells"


def test_a_file_a_text(folder: Path) -> None:
    module, other = cell_file.load("One", TEXT), cell_file.load("One", TEXT.replace("1", "2"))
    assert (module.forward(1), other.forward(1)) == (2, 3)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        Path(inspect.getsourcefile(m.forward) or "").name for m in (module, other)
    )
    assert inspect.getsource(module.forward) == TEXT[TEXT.index("def") :]
    assert sys.modules[module.__name__] is module and module.__name__ != other.__name__


def test_what_is_there_is_not_written_again(folder: Path) -> None:
    cell_file.load("One", TEXT)
    (path,) = folder.iterdir()
    before = path.stat()
    cell_file.load("One", TEXT)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", [b"", b"raise SystemExit", b"\xff\xfe"], ids=["empty", "changed", "no text"])
def test_a_damaged_file_is_replaced(damage: bytes, folder: Path) -> None:
    cell_file.load("One", TEXT)
    (path,) = folder.iterdir()
    path.write_bytes(damage)
    assert cell_file.load("One", TEXT).forward(1) == 2
    assert path.read_text() == TEXT


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of the process's own serves; said once a file."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FASTCELLS_CACHE_DIR", str(tmp_path / "file"))
    module = cell_file.load("One", TEXT)
    assert module.forward(1) == 2 and inspect.getsource(module.forward)
    assert "cannot be written: " in caplog.text
    assert (tmp_path / "file").read_text() == "no folder"


USE = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from fastcells import zoo
from fastcells.kernels.triton.rules import rule_of
spec = zoo.JANET.kind.spec()
print(spec.key, rule_of(spec.key).forward.fn.__code__.co_filename)
"""


def test_processes_agree(folder: Path) -> None:
    """Whatever their hash seeds, and though they write at once."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", USE],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parents[2],
        )
        for seed in (1, 2)
    ]
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1 and str(folder) in said.pop()
    assert len(list(folder.iterdir())) == 1
