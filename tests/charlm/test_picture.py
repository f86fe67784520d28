"""Pictures of runs, events for TensorBoard, and the list of weights."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fastcells.charlm import Config, Epoch, RunFolder, Vocabulary, picture
from fastcells.charlm.cli import main

SMALL = ["--hidden", "8", "--batch", "4", "--steps", "8", "--epochs", "2", "--length", "5", "--device", "cpu"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("we walked along the river and the river walked with us\n" * 8)
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def saving(self: Figure, *args: object, **options: object) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saving)
    return figures


def curves(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in lines}


def test_curves_of_a_run(corpus: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(corpus), "--out", str(run), "--validation", "0.2", "--plot", *SMALL]) == 0
    assert (run / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    rows = RunFolder(run).metrics()
    found = curves(drawn[0])
    assert found["training"] == [(row["epoch"], row["perplexity"]) for row in rows]
    assert found["validation"] == [(row["epoch"], row["valid_perplexity"]) for row in rows]
    assert found["learning rate"] == [(row["epoch"], row["learning_rate"]) for row in rows]
    assert drawn[0].axes[0].get_title() == "run"


def folder(path: Path, losses: list[float]) -> RunFolder:
    run = RunFolder.create(path, Config(), Vocabulary("ab"), {})
    for number, loss in enumerate(losses, 1):
        run.add_metrics(Epoch(number, loss, 1.0, 1.0))
    return run


def test_one_epoch_is_a_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    picture.draw(folder(tmp_path / "one", [1.0]))
    (line,) = [line for line in drawn[0].axes[0].get_lines() if line.get_label() == "training"]
    assert line.get_marker() == "o" and len(line.get_xdata()) == 1


def test_a_perplexity_that_is_infinite_is_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    picture.draw(folder(tmp_path / "run", [1e9, 1.0]))
    assert [epoch for epoch, _ in curves(drawn[0])["training"]] == [2]


def test_a_font_that_shows_the_name_or_none(tmp_path: Path, drawn: list[Figure]) -> None:
    assert picture.font_for("run") == "DejaVu Sans"
    unshown = "run-\U000f1234"  # for private use: no font has it
    assert picture.font_for(unshown) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: pytest.fail("matplotlib warns of a missing character"))
        picture.draw(folder(tmp_path / unshown, [1.0]))
        picture.draw(folder(tmp_path / "歌词", [1.0]))
    assert drawn[0].axes[0].get_title() == ""
    assert drawn[1].axes[0].get_title() == ("歌词" if picture.font_for("歌词") else "")


def test_what_is_missing_is_said_before_a_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastcells.charlm.extras.find_spec", lambda name: None)
    for option, package in (("--plot", "fastcells[plot]"), ("--tensorboard", "tensorboard")):
        assert main(["train", str(corpus), "--out", str(tmp_path / "run"), option, *SMALL]) == 2
        assert f"{option} needs " in (error := capsys.readouterr().err) and f"pip install '{package}'" in error
    assert not (tmp_path / "run").exists()


def test_tensorboard(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer in place of TensorBoard's, which is not installed everywhere."""
    points: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, *point: object) -> None:
            points.append(point)

        def close(self) -> None:
            points.append(("closed", 0.0, 0))

    monkeypatch.setattr("fastcells.charlm.extras.find_spec", lambda name: object())
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), "--tensorboard", *SMALL]) == 0
    rows = RunFolder(tmp_path / "run").metrics()
    steps = [13, 26]
    assert [p for p in points if p[0] == "loss/training"] == [
        ("loss/training", row["loss"], step) for row, step in zip(rows, steps, strict=True)
    ]
    assert points[-1][0] == "closed"


def test_summary(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(corpus), "--out", str(tmp_path / "run"), "--summary", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "layer.weight_hh_l0" in out and " 24 x 8          192\n" in out
