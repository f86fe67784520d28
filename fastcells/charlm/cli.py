"""The command line: `fastcells train [CORPUS]`, `generate RUN --prefix TEXT`, `eval RUN TEXT`, `tune`, `doctor`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

from fastcells import doctor
from fastcells.charlm.errors import InputError
from fastcells.charlm.eval_command import eval_command
from fastcells.charlm.generate_command import generate_command
from fastcells.charlm.options import parser
from fastcells.charlm.terminal import prepare, say, silence_stdout
from fastcells.charlm.train_command import train_command
from fastcells.charlm.tune_command import tune_command

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train_command,
    "generate": generate_command,
    "eval": eval_command,
    "tune": tune_command,
    "doctor": lambda options: doctor.forget() if options.forget else doctor.main(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as `fastcells train --help` lists them."""
    options = parser().parse_args(argv)
    prepare()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"fastcells: warning: {message}", sys.stderr)
        try:
            return COMMANDS[options.command](options)
        except BrokenPipeError:
            silence_stdout()
            return 0
        except (InputError, OSError) as error:
            say(f"fastcells: error: {error}", sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("fastcells: interrupted", file=sys.stderr)
            return 130
