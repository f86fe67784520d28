"""A memory of its own for each test, trials allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcells.tuning import memory as memories
from fastcells.tuning import verdicts
from fastcells.tuning.memory import Memory


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Empty, in use by this process, on a machine that the shipped file does not know."""
    monkeypatch.delenv("FASTCELLS_TUNE", raising=False)
    monkeypatch.setenv("FASTCELLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(memories, "shipped", lambda device: None)
    verdicts.reset()
    yield verdicts.memory()
    verdicts.reset()
