"""Files that grow by lines while a run goes on. A line that cannot be written now is written with a later one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastcells.charlm.errors import InputError
from fastcells.charlm.files import replace_file


class Journal:
    """Lines of text, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0  # of what was written whole
        self.waiting: list[str] = []

    def add(self, line: str) -> None:
        """Append a line, and those that wait.

        Raises:
            OSError: it cannot be written, and waits.
        """
        self.waiting.append(line + "\n")
        with self.path.open("r+b" if self.size else "wb") as file:  # one that has vanished is not begun anew in between
            file.seek(self.size)
            file.write("".join(self.waiting).encode("utf-8", "backslashreplace"))
            file.truncate()
        self.size = self.path.stat().st_size
        self.waiting.clear()


class Table:
    """A CSV file of numbers, one row for each thing measured."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.journal, self.columns = Journal(path), tuple(columns)

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append a row; the header too, if it is the first. What is None stays empty. Raises OSError, as `Journal`."""
        if not self.journal.size and not self.journal.waiting:
            self.journal.waiting.append(_csv(self.columns) + "\n")
        self.journal.add(_csv(["" if row[name] is None else row[name] for name in self.columns]))

    def rows(self) -> list[dict[str, float]]:
        """What is there, by column name, without the empty cells.

        Raises:
            InputError: a row is not one of numbers.
        """
        if not self.journal.path.exists():
            return []
        try:
            with self.journal.path.open(newline="", encoding="utf-8") as file:
                return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise InputError(f"{self.journal.path} is damaged: {error}") from error

    def keep(self, wanted: Callable[[dict[str, float]], bool]) -> None:
        """Drop the rows that are not wanted, and one that was cut off."""
        if not self.journal.path.exists():
            return
        lines = [_csv(self.columns)]
        with self.journal.path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in list(csv.DictReader(file)):
                cells = [row.get(name) for name in self.columns]
                try:
                    numbers = {name: float(c) for name, c in zip(self.columns, cells, strict=True) if c}
                except (ValueError, TypeError):
                    continue
                if None not in cells and numbers and wanted(numbers):
                    lines.append(_csv(cells))
        replace_file(self.journal.path, "".join(line + "\n" for line in lines).encode())
        self.journal = Journal(self.journal.path)


def _csv(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
