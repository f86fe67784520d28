"""A pytest plugin that keeps each failure at once, for a run that may be cut off: `-p tests.support.failures`.

FASTCELLS_FAILURES names the file that it adds to.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that collects what the others report, if there are several."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(os.environ["FASTCELLS_FAILURES"]).open("a") as file:
            file.write(f"==== {report.nodeid} ({report.when})\n{report.longreprtext}\n")
