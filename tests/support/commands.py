"""Commands in forks of one process that has imported what takes longest, and in which Triton compiles.

with commands() as command:
    done = command("-m", "bench.cycles", "--quick")  # as subprocess.run([sys.executable, *arguments]) does
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
# `TRITON_INTERPRET=1`, which the other tests need, would leave nothing to compile.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
SECONDS = 280


@contextmanager
def commands() -> Iterator[Command]:
    """Yields command(*arguments): status, output and errors of `python *arguments`, run in the project's folder."""
    server = [sys.executable, "-m", "tests.support.commands"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(server, text=True, cwd=ROOT, env=ENVIRONMENT, **pipes) as process,
    ):
        out, err = Path(folder, "out"), Path(folder, "err")

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            process.stdin.write(json.dumps([arguments, str(out), str(err)]) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

        yield command


def _become(arguments: list[str], out: str, err: str) -> None:
    """This process goes on as the command."""
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    signal.alarm(SECONDS)
    kind, what, *sys.argv[1:] = arguments
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c", arguments
        exec(what, {"__name__": "__main__"})


def _serve() -> None:
    """Each line a command, each answer its status; a command's process leaves the loop."""
    import torch  # noqa: F401 for all commands

    if find_spec("triton"):
        import triton  # noqa: F401
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(*json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
