"""The poll's assembly, as text: each word is loaded once, and looked at."""

from __future__ import annotations

import re

import pytest

from fastcells.kernels.gluon.exchange import poll_assembly, poll_constraints

SIZES = [(tensors, pack, bits) for tensors in (1, 3, 4) for pack in (16, 32, 64) for bits in (16, 32)]


@pytest.mark.parametrize(("tensors", "pack", "bits"), SIZES)
def test_each_word_is_loaded_and_looked_at(tensors: int, pack: int, bits: int) -> None:
    text, words = poll_assembly(tensors, pack, bits), tensors * pack * bits // 32
    loads = re.findall(r"v4\.b32 \{(.*?)\}, \[\$(\d+)\]", text)
    loaded = [int(word[1:]) for to, _ in loads for word in to.split(", ")]
    assert sorted(loaded) == list(range(words))
    # A lane's elements lie in runs of 16 bytes, and each run is loaded from where its first element lies.
    first = {words + tensor * pack + i for tensor in range(tensors) for i in range(0, pack, 128 // bits)}
    assert {int(at) for _, at in loads} == first
    looked_at = [
        int(word) for line in text.splitlines() if line.startswith("max.") for word in re.findall(r"\$(\d+)", line)
    ]
    assert sorted(looked_at) == list(range(words))


@pytest.mark.parametrize(("tensors", "pack", "bits"), SIZES)
def test_operands_are_those_of_the_constraints(tensors: int, pack: int, bits: int) -> None:
    text, constraints = poll_assembly(tensors, pack, bits), poll_constraints(tensors, pack, bits).split(",")
    used = {int(operand) for operand in re.findall(r"\$(\d+)", text)}
    assert max(used) < len(constraints)
    assert {constraints[i] for i in used if f"[${i}]" in text} == {"l"}, (
        "what is loaded from or stored to is an address"
    )
    assert constraints[: tensors * pack * bits // 32] == ["=&r"] * (tensors * pack * bits // 32)


def test_it_waits_by_strong_loads_alone() -> None:
    text = poll_assembly(1, 16, 16)
    assert all(".relaxed." in line for line in text.splitlines() if re.match(r"(@\w+ )?(ld|st)\.", line))
    assert text.count("bra L;") == 1
