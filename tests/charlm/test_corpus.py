"""Reading a corpus, its vocabulary, and what is said about one that cannot be used."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest

from fastcells.charlm import InputError, Vocabulary, bundled_corpus, read_corpus


def test_newlines_become_spaces_and_chars_keeps_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("歌\r\n词\nend\rx".encode())
    assert read_corpus(path) == "歌  词 end x"
    assert read_corpus(path, chars=3) == "歌  "


def test_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfab")
    assert read_corpus(path) == "ab"


def test_zip_with_one_text(tmp_path: Path) -> None:
    path = tmp_path / "lyrics.txt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/lyrics.txt", "词\n曲")
        archive.writestr("__MACOSX/folder/._lyrics.txt", b"\x00\xff")
        archive.writestr("readme.md", "no text of songs")
    assert read_corpus(path) == "词 曲"


def test_zip_without_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.png", b"")
    with pytest.raises(InputError, match=r"a\.zip holds no \.txt file; it holds image\.png"):
        read_corpus(path)


def test_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip archive"):
        read_corpus(path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    assert read_corpus("-") == "a b"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such corpus: .*nothing\.txt"):
        read_corpus(tmp_path / "nothing.txt")


def test_folder_without_a_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder without a \.txt file; a glob finds others"):
        read_corpus(tmp_path)


def test_empty_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("")
    with pytest.raises(InputError, match=r"a\.txt is empty"):
        read_corpus(path)


def test_invalid_utf8_names_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("歌".encode() + b"\xb8\xe8")
    with pytest.raises(InputError, match="not UTF-8: byte 0xb8 at offset 3"):
        read_corpus(path)


def test_chars_must_be_positive(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    with pytest.raises(InputError, match="chars must be positive, got 0"):
        read_corpus(path, chars=0)


def test_vocabulary_is_sorted_and_goes_both_ways() -> None:
    vocabulary = Vocabulary("banana 歌")
    assert vocabulary.characters == " abn歌"
    assert vocabulary.encode("歌a").tolist() == [4, 1]
    assert vocabulary.decode(vocabulary.encode("nab 歌").tolist()) == "nab 歌"


def test_unknown_character_is_named_with_the_way_out() -> None:
    vocabulary = Vocabulary("abc")
    with pytest.raises(InputError, match=r"character '鑫' \(U\+946B\) at position 1 .* --unknown skip"):
        vocabulary.encode("a鑫b")
    assert vocabulary.encode("a鑫b", unknown="skip").tolist() == [0, 1]


@pytest.mark.parametrize(("language", "length", "distinct"), [("zh", 12_000, (950, 1100)), ("en", 20_000, (27, 60))])
def test_bundled_corpus(language: str, length: int, distinct: tuple[int, int]) -> None:
    text = bundled_corpus(language)
    assert len(text) >= length
    assert distinct[0] <= len(set(text)) <= distinct[1]
    assert len(bundled_corpus(language, chars=100)) == 100


def test_bundled_corpus_of_no_such_language() -> None:
    with pytest.raises(InputError, match="no bundled corpus 'fr'; there are zh, en"):
        bundled_corpus("fr")
