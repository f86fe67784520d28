"""Files that grow by lines: what could not be written waits, and half a line is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcells.charlm import InputError
from fastcells.charlm.journal import Journal, Table


def test_lines_wait_while_they_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.txt"
    journal = Journal(path)
    for line in ("one", "two"):
        with pytest.raises(FileNotFoundError):
            journal.add(line)
    path.parent.mkdir()
    journal.add("three")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_half_a_line_is_written_over(tmp_path: Path) -> None:
    """As a disk leaves it that became full within a line."""
    journal = Journal(tmp_path / "log.txt")
    journal.add("one")
    with journal.path.open("a") as file:
        file.write("two, of which the disk took")
    journal.add("two")
    assert journal.path.read_text() == "one\ntwo\n"


def test_a_file_that_has_gone_is_not_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.txt")
    journal.add("one")
    journal.path.rename(tmp_path / "away.txt")
    with pytest.raises(FileNotFoundError):
        journal.add("two")
    assert not journal.path.exists()
    (tmp_path / "away.txt").rename(journal.path)
    journal.add("three")
    assert journal.path.read_text() == "one\ntwo\nthree\n"


def test_a_table_goes_on_and_drops_what_is_not_wanted(tmp_path: Path) -> None:
    columns = ("epoch", "loss", "valid")
    table = Table(tmp_path / "metrics.csv", columns)
    for epoch in (1, 2, 3):
        table.add({"epoch": epoch, "loss": epoch / 4, "valid": None})
    table = Table(tmp_path / "metrics.csv", columns)
    table.keep(lambda row: row["epoch"] < 3)
    table.add({"epoch": 3, "loss": 0.5, "valid": 0.25})
    expected = [{"epoch": 1, "loss": 0.25}, {"epoch": 2, "loss": 0.5}, {"epoch": 3, "loss": 0.5, "valid": 0.25}]
    assert table.rows() == expected


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,many\n")
    with pytest.raises(InputError, match=r"metrics\.csv is damaged: could not convert"):
        Table(tmp_path / "metrics.csv", ("epoch", "loss")).rows()
