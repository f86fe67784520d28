"""Which files a corpus is, and what is said about an archive that cannot be read."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from fastcells.charlm import InputError, Reading, read_corpus
from fastcells.charlm.corpus import corpus_pieces
from fastcells.charlm.sources import find

KEEP = Reading(newlines="keep")


def text_of(*paths: str | Path, reading: Reading = KEEP, chars: int | None = None) -> str:
    return "".join(corpus_pieces([str(p) for p in paths], chars, reading))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in {
        "b.txt": "bb\n",
        "a.TXT": "aa",
        "sub/c.txt": "cc",
        "._b.txt": "\0",
        ".git/d.txt": "no",
        "e.py": "x = 1\n",
        "f.txt": "",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress(b"zz"))
    return tmp_path


def test_a_folder_is_its_texts_in_order(folder: Path) -> None:
    assert text_of(folder) == "aa\nbb\ncc\nzz"


def test_files_are_joined_on_lines_of_their_own(folder: Path) -> None:
    assert text_of(folder / "sub/c.txt", folder / "b.txt", folder / "a.TXT") == "cc\nbb\naa"
    assert text_of(folder / "b.txt", folder / "a.TXT", reading=Reading()) == "bb aa"


def test_a_glob(folder: Path) -> None:
    assert text_of(f"{folder}/**/*.py") == "x = 1\n"
    assert find([f"{folder}/[ab].*"]) == [folder / "a.TXT", folder / "b.txt"]
    with pytest.raises(InputError, match=r"no file is called .*nothing"):
        find([f"{folder}/nothing*"])


def test_a_file_that_is_called_as_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert text_of(tmp_path / "a[1].txt") == "x"


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("歌\n词".encode()))
    assert read_corpus(path) == "歌 词"
    path.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(InputError, match=r"a\.txt\.gz cannot be read as a gzip file: Compressed file ended"):
        read_corpus(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="cannot be read as a gzip file: Not a gzipped file"):
        read_corpus(path)


def zipped(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_zip_with_several_texts(tmp_path: Path) -> None:
    members = {"b.txt": b"b", "a/c.TXT": b"c", "._b.txt": b"\0", "__MACOSX/x.txt": b"x", "d.md": b"d"}
    assert text_of(zipped(tmp_path / "a.zip", members)) == "c\nb"


def test_what_is_wrong_in_a_zip_names_the_member(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"good.txt": b"x", "sub/bad.txt": b"\xff\xfe\xfa"})
    with pytest.raises(InputError, match=r"a\.zip: sub/bad\.txt is not utf-16"):
        read_corpus(path)
    path = zipped(tmp_path / "b.zip", {"a.txt": bytes(range(32, 127)) * 9})
    data = bytearray(path.read_bytes())
    data[60] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"b\.zip: a\.txt cannot be read as a zip archive"):
        read_corpus(path)


def test_encrypted_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.txt": b"x" * 20})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip archive: .*encrypted"):
        read_corpus(path)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcells.charlm.sources.HARMLESS", 1 << 20)
    bomb = b"a" * (3 << 20)
    path = zipped(tmp_path / "a.zip", {"good.txt": b"x", "bomb.txt": bomb})
    read = zipfile.ZipFile.open
    opened: list[object] = []

    def opening(self: zipfile.ZipFile, member: object, *args: object) -> object:
        opened.append(member)
        return read(self, member, *args)

    monkeypatch.setattr(zipfile.ZipFile, "open", opening)
    with pytest.raises(InputError, match=r"a\.zip: bomb\.txt would unpack to 3,145,728 bytes or more, from 3,\d+"):
        read_corpus(path)
    assert not opened, "it is refused before anything is read"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(InputError, match=r"b\.txt\.gz would unpack to 2,097,152 bytes or more"):
        read_corpus(tmp_path / "b.txt.gz")
    monkeypatch.setattr("fastcells.charlm.sources.LARGEST_RATIO", 2000)
    assert len(read_corpus(path)) == len(bomb) + 2


def test_chars_over_several_files(folder: Path) -> None:
    assert text_of(folder, chars=4) == "aa\nb"


def test_standard_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab")))
    assert text_of("-") == "ab"
    with pytest.raises(InputError, match="standard input can be read once"):
        text_of("-", "-")
