"""Several texts in one pass, endless ones, ends, and draws from a part of the characters."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import pytest
import torch

from fastcells.charlm import CharLM, Choosing, Config, InputError, Vocabulary, generate, generate_batch, stream
from fastcells.charlm.cli import main

VOCABULARY = Vocabulary("abcdefgh \n")
GREEDY, DRAWN = Choosing(), Choosing(temperature=1.0)
PREFIXES = ["abc def", "abcdefgh abc", "a", "h", "fed cba"]  # so that sorting by length is not its own inverse


@pytest.fixture(params=["rnn", "gru", "lstm"])
def model(request: pytest.FixtureRequest) -> CharLM:
    model = CharLM(len(VOCABULARY), Config(cell=request.param, hidden=16, layers=2))
    with torch.no_grad():  # far from uniform, so that the likeliest character is no accident of rounding
        for p in model.parameters():
            p.mul_(8)
    return model


def test_a_batch_is_what_each_would_be_alone(model: CharLM) -> None:
    alone = [generate(model, VOCABULARY, prefix, 30) for prefix in PREFIXES for _ in range(2)]
    assert generate_batch(model, VOCABULARY, PREFIXES, 30, GREEDY, samples=2) == alone
    assert generate_batch(model, VOCABULARY, PREFIXES, 0, GREEDY) == PREFIXES


def test_samples_differ_and_a_seed_repeats_them(model: CharLM) -> None:
    first, second = (
        generate_batch(
            model, VOCABULARY, ["a"], 30, Choosing(2.0), samples=4, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    )
    assert first == second and len(set(first)) == 4


def test_an_endless_stream_begins_as_a_text_does(model: CharLM) -> None:
    endless = "".join(itertools.islice(stream(model, VOCABULARY, "abc", GREEDY), 300))
    assert "abc" + endless == generate(model, VOCABULARY, "abc", 300)


def stops_of(text: str) -> list[str]:
    """Texts of one, two and five characters that come somewhere in the middle."""
    return [text[i : i + n] for i in (20, 31) for n in (1, 2, 5)]


def test_a_text_ends_before_the_stop(model: CharLM) -> None:
    options = {"temperature": 1.0, "generator": torch.Generator().manual_seed(2)}
    whole = generate(model, VOCABULARY, "a", 60, **options)
    for stop in stops_of(whole[1:]):
        expected = whole[0] + whole[1:].split(stop)[0]
        options["generator"] = torch.Generator().manual_seed(2)
        assert generate(model, VOCABULARY, "a", 60, stop=stop, **options) == expected
        seed = torch.Generator().manual_seed(2)
        assert generate_batch(model, VOCABULARY, ["a"], 60, DRAWN, stop=stop, generator=seed) == [expected]


def test_a_beginning_of_the_stop_that_is_none_comes_late_but_whole() -> None:
    model = CharLM(len(VOCABULARY), Config(hidden=8))
    text = generate(model, VOCABULARY, "a", 40)
    assert generate(model, VOCABULARY, "a", 40, stop=text[-3:] + "x") == text


def test_in_a_batch_each_ends_at_its_own_stop(model: CharLM) -> None:
    texts = generate_batch(model, VOCABULARY, PREFIXES, 30, GREEDY)
    stop = texts[1][len(PREFIXES[1]) + 10]
    expected = [p + t[len(p) :].split(stop)[0] for p, t in zip(PREFIXES, texts, strict=True)]
    assert generate_batch(model, VOCABULARY, PREFIXES, 30, GREEDY, stop=stop) == expected


SCORES = torch.log(torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]]))


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.84}, {1, 3, 4}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.7}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.2}, {0, 1, 3, 4}),
        ({"top_p": 0.84, "min_p": 0.7}, {1, 3}),
        ({"top_p": 0.84, "top_k": 1}, {1}),
        ({"top_p": 0.6, "temperature": 100.0}, {1, 3, 4}),
    ],
)
def test_what_may_be_drawn(options: dict[str, float], drawn: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    choosing = Choosing(**{"temperature": 1.0, **options})
    found = choosing.pick(SCORES.expand(2000, -1), generator)
    assert set(found.tolist()) == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"min_p": 1.5}, "min_p must be above 0 and at most 1, got 1.5"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
        ({"stop": ""}, "stop must have at least one character"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    model = CharLM(len(VOCABULARY), Config(hidden=8))
    with pytest.raises(InputError, match=message):
        generate(model, VOCABULARY, "a", 1, **options)


def test_bad_options_of_a_batch() -> None:
    model = CharLM(len(VOCABULARY), Config(hidden=8))
    for length, samples in ((-1, 1), (1, 0)):
        with pytest.raises(InputError, match=f"got {length} and {samples}"):
            generate_batch(model, VOCABULARY, ["a"], length, GREEDY, samples=samples)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "corpus.txt").write_text("we walked along the river and the river walked with us\n" * 4)
    small = ["--hidden", "16", "--batch", "4", "--steps", "8", "--epochs", "20", "--length", "5", "--device", "cpu"]
    assert main(["train", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "run"), *small]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prefix.txt").write_text("the ri\n")
    generated = ["generate", str(run), "--device", "cpu"]
    assert main([*generated, "--prefix", "we ", "--prefix-file", str(tmp_path / "prefix.txt"), "--length", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [12, 15] and lines[0][:3] == "we " and lines[1][:6] == "the ri"
    assert main([*generated, "--prefix", "we ", "--samples", "3", "--seed", "1", "--top-p", "0.9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main([*generated, "--prefix", "we ", "--length", "9"]) == 0
    stop = capsys.readouterr().out[8]  # one that comes
    assert main([*generated, "--prefix", "we ", "--endless", "--stop", stop]) == 0
    endless = capsys.readouterr().out
    assert main([*generated, "--prefix", "we ", "--stop", stop]) == 0
    assert capsys.readouterr().out == endless and stop not in endless[3:]
    assert main(generated) == 2
    assert "give --prefix or --prefix-file" in capsys.readouterr().err
    assert main([*generated, "--prefix", "a", "--prefix", "w", "--endless"]) == 2


def test_what_is_left_out_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--prefix", "w鑫e\n鑫Q", "--unknown", "skip", "--length", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("we ")
    assert captured.err == "fastcells: warning: left out of the prefix, since the model never saw them: 鑫 Q\n"


def test_a_terminal_that_cannot_show_a_character_is_told_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zh.txt").write_text("我们在风里唱歌" * 40)
    small = ["--hidden", "8", "--batch", "4", "--steps", "8", "--epochs", "2", "--length", "5", "--device", "cpu"]
    assert main(["train", str(tmp_path / "zh.txt"), "--out", str(tmp_path / "zh"), *small]) == 0
    capsys.readouterr()
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii"))
    assert main(["generate", str(tmp_path / "zh"), "--prefix", "我们", "--length", "3", "--samples", "2"]) == 0
    sys.stdout.flush()
    assert terminal.getvalue().startswith(b"\\u6211\\u4eec")
    warning = "ascii cannot show all characters: they are written as escapes, the first is U+6211"
    assert capsys.readouterr().err.count(warning) == 1
