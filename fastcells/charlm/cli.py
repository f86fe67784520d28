"""The command line: `fastcells train [CORPUS]`, `fastcells generate RUN --prefix TEXT`, `fastcells doctor`."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence

from fastcells import doctor
from fastcells.charlm.errors import InputError
from fastcells.charlm.generate_command import generate_command
from fastcells.charlm.options import parser
from fastcells.charlm.progress import silence_stdout
from fastcells.charlm.train_command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, as `fastcells train --help` lists them."""
    options = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not end the training
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"fastcells: warning: {message}", file=sys.stderr)
        try:
            if options.command == "doctor":
                return doctor.main()
            return train_command(options) if options.command == "train" else generate_command(options)
        except BrokenPipeError:
            silence_stdout()
            return 0
        except (InputError, OSError) as error:
            print(f"fastcells: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("fastcells: interrupted", file=sys.stderr)
            return 130
