"""A text of any length as a file of ids: the same as in memory, and memory that does not grow with it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from fastcells.charlm import InputError, Vocabulary, encode
from fastcells.charlm.idfile import open_ids, write_ids

ALPHABET = "abc 歌词🎵\n\t"


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_same_as_in_memory(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcells.charlm.encode.PIECE", 64)
    text = "".join(random.Random(1).choices(ALPHABET, k=5000))
    found = encode.encode(pieces(text, size), tmp_path / "ids.npy")
    vocabulary = Vocabulary(text)
    assert found.vocabulary.characters == vocabulary.characters
    ids = open_ids(tmp_path / "ids.npy", found.sha256)
    assert ids.dtype == np.uint16 and found.length == len(ids) == 5000 and found.rare == 0
    assert ids.tolist() == vocabulary.encode(text).tolist()
    assert np.load(tmp_path / "ids.npy").tolist() == ids.tolist(), "any tool reads it"
    assert os.listdir(tmp_path) == ["ids.npy"]


def test_more_characters_than_16_bits(tmp_path: Path) -> None:
    text = "".join(chr(c) for c in range(0x100, 0x12000) if not 0xD800 <= c < 0xE000)
    found = encode.encode([text[:300], text, text], tmp_path / "ids.npy")
    ids = open_ids(tmp_path / "ids.npy", found.sha256)
    assert ids.dtype == np.uint32 and len(found.vocabulary) == len(text) > 1 << 16
    assert found.vocabulary.decode(ids.tolist()) == text[:300] + text + text


def test_rare_characters_become_one(tmp_path: Path) -> None:
    found = encode.encode(["aaabbc歌"], tmp_path / "ids.npy", min_count=2)
    assert found.vocabulary.characters == "ab\ufffd" and found.rare == 2
    assert found.vocabulary.decode(open_ids(tmp_path / "ids.npy", found.sha256).tolist()) == "aaabb\ufffd\ufffd"
    with pytest.raises(InputError, match="no character occurs 9 times, as --min-count asks for"):
        encode.encode(["aaabbc"], tmp_path / "b.npy", min_count=9)
    assert encode.encode(["aabb"], tmp_path / "c.npy", min_count=2).vocabulary.characters == "ab"


@pytest.mark.parametrize("change", ["cut", "byte", "header", "empty", "type"])
def test_a_damaged_file_is_named(change: str, tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    sha256 = write_ids(path, [np.arange(100)], np.dtype(np.uint16))
    data = bytearray(path.read_bytes())
    if change == "type":
        np.save(path, np.zeros(100))
    else:
        data[-1 if change == "byte" else 3] ^= 1
        path.write_bytes({"cut": path.read_bytes()[:-2], "empty": b""}.get(change, data))
    with pytest.raises(InputError, match=r"ids\.npy is damaged: "):
        open_ids(path, sha256)


def test_an_error_in_the_text_leaves_no_file(tmp_path: Path) -> None:
    def text() -> object:
        yield "abc" * 1_000_000
        raise InputError("bad")

    with pytest.raises(InputError, match="bad"):
        encode.encode(text(), tmp_path / "ids.npy")
    assert not os.listdir(tmp_path)
