"""Run folders: what is written comes back, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastcells.charlm import CharLM, Config, Epoch, InputError, RunFolder, Vocabulary, load

VOCABULARY = Vocabulary("词曲 abc")
CONFIG = Config(cell="lstm", hidden=8, layers=2, clip=0.5, dtype="float64")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "deep" / "run", CONFIG, VOCABULARY, {"corpus": "test"})
    folder.save_weights(CharLM(len(VOCABULARY), CONFIG).double())
    return folder


def test_round_trip(run: RunFolder) -> None:
    model = CharLM(len(VOCABULARY), CONFIG).double()
    run.save_weights(model)
    loaded, vocabulary, config = load(run.path)
    assert config == CONFIG
    assert vocabulary.characters == VOCABULARY.characters
    assert not loaded.training
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_metrics(run: RunFolder) -> None:
    run.add_metrics(Epoch(1, 0.5, 1000.0, 2.0))
    run.add_metrics(Epoch(2, 1e5, 1000.0, 4.0))
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["perplexity"] == pytest.approx(1.6487, abs=1e-4)
    assert rows[1]["perplexity"] == float("inf")


def test_no_pickle(run: RunFolder) -> None:
    names = sorted(p.name for p in run.path.iterdir())
    assert names == ["config.json", "vocabulary.json", "weights.safetensors"]


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already: name another folder with --out"):
        RunFolder.create(tmp_path / "run", CONFIG, VOCABULARY, {})
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_missing_folder_and_files(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        load(tmp_path / "nothing")
    (run.path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a finished run: weights\.safetensors is missing"):
        load(run.path)


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_cut_off_weights(run: RunFolder, keep: int) -> None:
    weights = run.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged"):
        load(run.path)


def test_weights_of_another_model(run: RunFolder) -> None:
    run.save_weights(CharLM(len(VOCABULARY), Config(cell="gru", hidden=8)))
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged or belongs to another model"):
        load(run.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00",
        "[" * 100_000,
        '{"hidden": 0}',
        '{"no_such_option": 1}',
        '{"cell": "transformer"}',
        '{"impl": "bogus"}',
        '{"impl": 4}',
        '{"reset_after": 5}',
        '{"bidirectional": "no"}',
        '{"lr": null}',
        '{"lr": true}',
        '{"seed": "x"}',
    ],
    ids=lambda text: text[:24],
)
def test_damaged_configuration(run: RunFolder, text: str) -> None:
    (run.path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load(run.path)


@pytest.mark.parametrize("text", ["", '"', "[1, 2]", '""', '"aab"', '"ba"'])
def test_damaged_vocabulary(run: RunFolder, text: str) -> None:
    (run.path / "vocabulary.json").write_text(text)
    with pytest.raises(InputError, match=r"vocabulary\.json is damaged"):
        load(run.path)


def test_weights_that_are_not_finite(run: RunFolder) -> None:
    model = CharLM(len(VOCABULARY), CONFIG).double()
    torch.nn.init.constant_(model.output.bias, float("nan"))
    run.save_weights(model)
    with pytest.raises(InputError, match="holds weights that are not finite"):
        load(run.path)


def test_loading_draws_no_random_numbers(run: RunFolder) -> None:
    before = torch.get_rng_state()
    load(run.path)
    assert torch.equal(torch.get_rng_state(), before)


def test_vocabulary_of_another_size(run: RunFolder) -> None:
    (run.path / "vocabulary.json").write_text(json.dumps("abc"))
    with pytest.raises(InputError, match="belongs to another model"):
        load(run.path)


def test_an_interrupted_save_keeps_the_old_weights(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run.path / "weights.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fastcells.charlm.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        run.save_weights(CharLM(len(VOCABULARY), CONFIG).double())
    assert (run.path / "weights.safetensors").read_bytes() == before
    assert not list(run.path.glob("*.partial"))
