"""From bytes to the text that is learned: encodings, byte order marks, control characters, newlines."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastcells.charlm.errors import InputError

NEWLINES, CONTROLS = ("space", "keep"), ("error", "keep", "drop")
MARK = "\ufeff"
# Longest first: UTF-32's little-endian mark begins with UTF-16's.
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}
# Of C0 and C1 all but tab, newline and carriage return; and halves of pairs, which are no characters.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
SAMPLE = 1 << 16  # bytes that an encoding is guessed from


@dataclass(frozen=True)
class Reading:
    """How files become text.

    newlines: "space" makes each newline and carriage return a space, as the lessons do; "keep" keeps them, as \\n.
    control: "error", "keep" or "drop", for control characters.
    """

    encoding: str = "utf-8"
    newlines: str = "space"
    control: str = "error"

    def __post_init__(self) -> None:
        try:
            info = codecs.lookup(self.encoding)
        except (LookupError, ValueError):
            raise InputError(f"there is no encoding {self.encoding!r}") from None
        if not info._is_text_encoding or info.incrementaldecoder is None:
            raise InputError(f"{self.encoding!r} is no encoding of texts")
        for name, allowed in (("newlines", NEWLINES), ("control", CONTROLS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


def decode(pieces: Iterable[bytes], name: str, reading: Reading) -> Iterator[str]:
    """The text of one file, piece by piece. A byte order mark, at the beginning or inside, is no character.

    Raises:
        InputError: bytes that are not in the encoding, or a control character; with its offset, and what would work.
    """
    yield from _newlines(_controlled(_decoded(iter(pieces), name, reading), name, reading), reading)


def _decoded(pieces: Iterator[bytes], name: str, reading: Reading) -> Iterator[str]:
    first = next(pieces, b"")
    encoding = reading.encoding
    if codecs.lookup(encoding).name == "utf-8":
        encoding = next((found for mark, found in MARKS.items() if first.startswith(mark)), encoding)
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0  # of what the decoder has not begun to decode
    for piece, last in itertools.chain(((p, False) for p in itertools.chain([first], pieces)), [(b"", True)]):
        held = decoder.getstate()[0]
        begin = offset - len(held)
        try:
            yield decoder.decode(piece, last).replace(MARK, "")
        except UnicodeError as error:
            raise _refused(error, held + piece, begin, first, name, encoding) from error
        offset += len(piece)


def _refused(error: UnicodeError, data: bytes, begin: int, first: bytes, name: str, encoding: str) -> InputError:
    start, reason = getattr(error, "start", 0), getattr(error, "reason", str(error))
    byte = f"byte 0x{data[start]:02x} at offset {begin + start} " if start < len(data) else ""
    shown = "UTF-8" if codecs.lookup(encoding).name == "utf-8" else encoding
    guessed = guess(first[: SAMPLE // 2] + data[max(0, start - SAMPLE // 4) : start + SAMPLE // 4])
    way = f"it looks like {guessed}: try --encoding {guessed}" if guessed else "name another one with --encoding"
    return InputError(f"{name} is not {shown}: {byte}({reason}); {way}")


def guess(data: bytes) -> str | None:
    """The likeliest encoding of some bytes."""
    if data[1::2].count(0) > len(data) // 8 or data[::2].count(0) > len(data) // 8:
        return "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    best = from_bytes(data).best()
    return None if best is None or best.encoding == "utf_8" else best.encoding.replace("_", "-")


def _controlled(texts: Iterator[str], name: str, reading: Reading) -> Iterator[str]:
    offset = 0
    for text in texts:
        found = None if reading.control == "keep" else CONTROL.search(text)
        if found is None and reading.control != "keep":
            yield text
        elif reading.control == "drop":
            yield CONTROL.sub("", text)
        elif found is not None:
            raise _control(found, offset, text, name)
        else:
            yield re.sub("[\ud800-\udfff]", "", text)
        offset += len(text)


def _control(found: re.Match[str], offset: int, text: str, name: str) -> InputError:
    code = ord(found.group())
    hint = ""
    if code == 0 and text.count("\0") > len(text) // 8:
        hint = f"; it looks like {guess(text[:SAMPLE].encode('utf-8', 'replace'))}: try --encoding"
    return InputError(
        f"{name} holds the control character U+{code:04X} at offset {offset + found.start()}: is it a text? "
        f"--control drop leaves such characters out, --control keep learns them{hint}"
    )


def _newlines(texts: Iterator[str], reading: Reading) -> Iterator[str]:
    if reading.newlines == "space":
        for text in texts:
            yield text.replace("\n", " ").replace("\r", " ")
        return
    translator = io.IncrementalNewlineDecoder(None, translate=True)  # a \r\n may lie on the edge of two pieces
    for text in texts:
        yield translator.decode(text)
    yield translator.decode("", final=True)
