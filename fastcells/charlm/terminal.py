"""Lines for a terminal or whatever stands in its place: never torn, never with raw control characters."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

from tqdm import tqdm

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_warned = False


def prepare() -> None:
    """Let a character that a stream cannot show be escaped, and end nothing."""
    global _warned
    _warned = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with control characters escaped, but for tab and newline: \\x1b could do anything to a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def say(line: str, file: TextIO | None = None, end: str = "\n") -> None:
    """A line that the progress bar does not tear apart. A reader who has gone is no reason to stop training."""
    stream = file or sys.stdout
    if stream is None:
        return
    line = printable(line)
    _warn_of_escapes(line, stream)
    try:
        tqdm.write(line, file=stream, end=end)
        stream.flush()
    except OSError:
        if stream is sys.stdout:
            silence_stdout()


def silence_stdout() -> None:
    """After its reader has gone: or Python would complain once more at exit."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  it stays open until the process ends


def _warn_of_escapes(line: str, stream: TextIO) -> None:
    """Say once that what is shown is not what was written."""
    global _warned
    encoding = getattr(stream, "encoding", None)
    if _warned or not encoding:
        return
    try:
        line.encode(encoding)
    except UnicodeEncodeError as error:
        _warned = True
        character = line[error.start]
        say(
            f"fastcells: warning: {encoding} cannot show all characters: they are written as escapes, the first is "
            f"U+{ord(character):04X}. PYTHONIOENCODING=utf-8 changes it",
            file=sys.stderr,
        )
    except LookupError:
        return
