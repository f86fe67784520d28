"""Kernels compiled ahead of what times them, into Triton's cache: in a process for each core, a share in each."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time


def add_options(parser: argparse.ArgumentParser) -> None:
    """--jobs, and what the processes are told: which share is theirs."""
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile, ahead")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)


def compile_ahead(module: str, jobs: int, seconds: float = 600) -> None:
    """Run `python -m MODULE --share I` for each share; what is not ready after so long is compiled when it is timed."""
    command = [sys.executable, "-m", module, "--jobs", str(jobs), "--share"]
    end = time.monotonic() + seconds
    for worker in [subprocess.Popen([*command, str(share)]) for share in range(jobs)]:
        try:
            worker.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
