"""From bytes to text, in pieces of any size: encodings, marks, control characters, newlines."""

from __future__ import annotations

import codecs

import pytest

from fastcells.charlm import InputError, Reading
from fastcells.charlm.decode import decode

TEXT = "Grüße, 歌词 und 🎵\nnoch eine Zeile\r\nund\rnoch eine"
SIZES = (1, 2, 3, 7, 1000)


def decoded(data: bytes, size: int = 1000, name: str = "a.txt", **reading: str) -> str:
    # As files are read: what a mark takes comes in one piece.
    first = min(len(data), max(4, size))
    pieces = [data[:first], *(data[i : i + size] for i in range(first, len(data), size))]
    return "".join(decode(pieces, name, Reading(**reading)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "utf-32-be", "utf-7"])
def test_encodings(encoding: str, size: int) -> None:
    expected = TEXT.replace("\r\n", "\n").replace("\r", "\n")
    assert decoded(TEXT.encode(encoding), size, encoding=encoding, newlines="keep") == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE])
def test_marks_say_the_encoding(mark: bytes, size: int) -> None:
    encoding = {2: "utf-16", 4: "utf-32"}[len(mark)] + ("-le" if mark[:1] == b"\xff" else "-be")
    assert decoded(mark + "歌 x".encode(encoding), size) == "歌 x"


@pytest.mark.parametrize("size", SIZES)
def test_marks_inside_and_twice_are_dropped(size: int) -> None:
    assert decoded("\ufeff\ufeffa\ufeffb".encode(), size) == "ab"


@pytest.mark.parametrize("size", SIZES)
def test_newlines(size: int) -> None:
    assert decoded(b"a\r\nb\n\rc\r", size) == "a  b  c "
    assert decoded(b"a\r\nb\n\rc\r", size, newlines="keep") == "a\nb\n\nc\n"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("data", "offset", "byte"),
    [(b"abc\xb8\xe8", 3, "b8"), ("歌".encode() + b"\xff", 3, "ff"), (b"ab\xe6\xad", 2, "e6"), (b"\xc0a", 0, "c0")],
)
def test_what_is_not_utf8_is_named_by_its_offset(data: bytes, offset: int, byte: str, size: int) -> None:
    with pytest.raises(InputError, match=f"^a.txt is not UTF-8: byte 0x{byte} at offset {offset} "):
        decoded(data, size)


def test_a_late_offset_counts_from_the_beginning() -> None:
    with pytest.raises(InputError, match="byte 0xff at offset 5000 "):
        decoded("é".encode() * 2500 + b"\xff", 999)


CHINESE = "我们在风里唱歌，歌声吹过来，又吹过去。你还记得那一年夏天的海吗？" * 20
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy a nebylo mu do smíchu, protože šlo o pravopis. " * 20


@pytest.mark.parametrize(("text", "encoding"), [(CHINESE, "gb18030"), (CHINESE, "big5"), (CZECH, "cp1250")])
def test_the_likely_encoding_is_named_and_works(text: str, encoding: str) -> None:
    text = text.encode(encoding, "ignore").decode(encoding)
    with pytest.raises(InputError, match=r"it looks like .*: try --encoding") as caught:
        decoded(text.encode(encoding))
    named = str(caught.value).rsplit(" ", 1)[1]
    assert decoded(text.encode(encoding), encoding=named) == text


def test_utf16_without_a_mark_is_recognized() -> None:
    with pytest.raises(InputError, match=r"character U.0000 at offset 1: .* utf-16-le: try --encoding"):
        decoded("plain text".encode("utf-16-le"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("code", [0, 7, 0x0B, 0x1B, 0x7F, 0x85, 0x9F])
def test_control_characters(code: int, size: int) -> None:
    data = f"歌ab{chr(code)}c".encode()
    with pytest.raises(InputError, match=rf"^a\.txt holds the control character U.{code:04X} at offset 3: "):
        decoded(data, size)
    assert decoded(data, size, control="drop") == "歌abc"
    assert decoded(data, size, control="keep") == f"歌ab{chr(code)}c"


def test_tabs_are_text() -> None:
    assert decoded(b"a\tb") == "a\tb"


def test_halves_of_pairs_are_no_characters() -> None:
    for control, expected in (("drop", "ab"), ("keep", "ab")):
        assert decoded(rb"a\ud800b", encoding="unicode_escape", control=control) == expected
    with pytest.raises(InputError, match=r"U\+D800"):
        decoded(rb"a\ud800b", encoding="unicode_escape")


@pytest.mark.parametrize("encoding", ["nonsense", "hex", "rot13", "zlib", "a\0b", ""])
def test_no_encoding(encoding: str) -> None:
    with pytest.raises(InputError, match="encoding"):
        Reading(encoding=encoding)


@pytest.mark.parametrize("name", ["newlines", "control"])
def test_unknown_choices(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be one of .*, got 'x'"):
        Reading(**{name: "x"})
