"""Training: it learns, it repeats itself exactly, it stops in time, and it is the loop that the lessons print."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcells.charlm import (
    PRESETS,
    CharLM,
    Config,
    Diverged,
    InputError,
    Training,
    Vocabulary,
    perplexity,
    preset,
    train,
)
from fastcells.charlm.epoch import Epoch

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 12
VOCABULARY = Vocabulary(TEXT)
IDS = VOCABULARY.encode(TEXT)
SMALL = {"hidden": 24, "batch": 8, "steps": 9, "epochs": 3}


def losses(config: Config) -> list[float]:
    found: list[float] = []
    train(IDS, len(VOCABULARY), config, on_epoch=lambda _, epoch: found.append(epoch.loss))
    return found


def test_it_learns() -> None:
    found = losses(replace(preset("gru"), hidden=64, batch=8, steps=9, epochs=30))
    assert perplexity(found[0]) > 8
    assert perplexity(found[-1]) < 1.5


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.filterwarnings("ignore:a bidirectional language model")
def test_every_preset_runs_and_repeats_itself_exactly(name: str) -> None:
    config = replace(preset(name), **SMALL)
    first = losses(config)
    assert first == losses(config)
    assert first != losses(replace(config, seed=1))
    assert first[-1] < math.log(len(VOCABULARY)) * 1.01  # no worse than guessing


def test_presets_are_the_lessons() -> None:
    assert [n for n, c in PRESETS.items() if c.schedule != "none"] == ["gru"]
    assert [n for n, c in PRESETS.items() if c.loss == "sum"] == ["rnn-first-random", "rnn-first-consecutive"]
    assert [n for n, c in PRESETS.items() if c.epochs == 200] == ["rnn-first-random", "rnn-first-consecutive"]
    table = {name: (c.cell, c.layers, c.hidden, c.init, c.optimizer, c.lr, c.clip) for name, c in PRESETS.items()}
    assert table == {
        "rnn-first-random": ("rnn", 1, 256, "d2l", "sgd", 0.2, 5.0),
        "rnn-first-consecutive": ("rnn", 1, 256, "d2l", "sgd", 0.2, 5.0),
        "rnn-scratch": ("rnn", 1, 256, "d2l", "sgd", 1e2, 1e-2),
        "gru-scratch": ("gru", 1, 256, "d2l", "sgd", 1e2, 1e-2),
        "lstm-scratch": ("lstm", 1, 256, "d2l", "sgd", 1e2, 1e-2),
        "rnn-deep-scratch": ("rnn", 3, 256, "d2l", "sgd", 1e2, 1e-2),
        "rnn": ("rnn", 1, 256, "torch", "adam", 1e-3, None),
        "gru": ("gru", 1, 256, "torch", "adam", 1e-2, None),
        "lstm": ("lstm", 1, 256, "torch", "adam", 1e-2, None),
        "lstm-deep": ("lstm", 2, 256, "torch", "adam", 1e-2, None),
        "lstm-deeper": ("lstm", 6, 256, "torch", "adam", 1e-2, None),
        "gru-bidirectional": ("gru", 1, 128, "torch", "adam", 1e-2, None),
    }
    assert all((c.steps, c.batch) == (35, 32) for c in PRESETS.values())
    assert [n for n, c in PRESETS.items() if c.sampling == "random"] == ["rnn-first-random", "rnn-scratch"]
    assert [n for n, c in PRESETS.items() if c.epochs == 250] == ["rnn-scratch", "rnn-deep-scratch", "rnn"]
    assert [n for n, c in PRESETS.items() if c.bidirectional] == ["gru-bidirectional"]
    assert [n for n, c in PRESETS.items() if c.nonlinearity == "relu"] == ["rnn-deep-scratch"]


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("schedule", ["none", "cosine"])
@pytest.mark.parametrize("sampling", ["random", "consecutive"])
def test_against_a_loop_in_plain_torch(sampling: str, schedule: str, loss: str) -> None:
    """The same model on explicit one-hots, nn.GRU, SGD and the lesson's clipping, written out here."""
    options = {"sampling": sampling, "schedule": schedule, "loss": loss, "lr": 1.0 if loss == "mean" else 0.01}
    config = Config(optimizer="sgd", clip=0.1 if loss == "mean" else 5.0, dtype="float64", **options, **SMALL)
    V, rates, reduction = len(VOCABULARY), torch.optim.SGD([torch.zeros(1)], config.lr), loss
    torch.manual_seed(config.seed)
    start = CharLM(V, config).double()
    gru, output = nn.GRU(V, 24).double(), nn.Linear(24, V).double()
    gru.load_state_dict(start.layer.state_dict())
    output.load_state_dict(start.output.state_dict())
    parameters = [*gru.parameters(), *output.parameters()]
    shuffle = torch.Generator().manual_seed(config.seed)
    steps = config.epochs * (((len(IDS) - 1) // 9 // 8) if sampling == "random" else (len(IDS) // 8 - 1) // 9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rates, steps)
    expected = []
    for _ in range(config.epochs):
        total, count, h = 0.0, 0, None
        if sampling == "random":
            starts = torch.randperm((len(IDS) - 1) // 9, generator=shuffle) * 9
            windows = [[(s, s + 9) for s in starts[i : i + 8].tolist()] for i in range(0, len(starts) // 8 * 8, 8)]
        else:
            row = len(IDS) // 8
            windows = [[(b * row + s, b * row + s + 9) for b in range(8)] for s in range(0, (row - 1) // 9 * 9, 9)]
        for window in windows:
            x, y = (torch.stack([IDS[a + d : b + d] for a, b in window]).t() for d in (0, 1))
            hidden, h = gru(F.one_hot(x, V).double(), None if sampling == "random" else h)
            loss = F.cross_entropy(output(hidden).reshape(-1, V), y.reshape(-1), reduction=reduction)
            gradients = torch.autograd.grad(loss, parameters)
            norm = sum((g**2).sum() for g in gradients) ** 0.5
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p -= (
                        (decay.get_last_lr()[0] if schedule == "cosine" else config.lr)
                        * g
                        * min(1.0, config.clip / (norm.item() + 1e-6))
                    )
            h = h.detach()
            rates.step()  # of nothing: a schedule asks for it
            decay.step()
            total += loss.item() * (y.numel() if reduction == "mean" else 1)
            count += y.numel()
        expected.append(total / count)
    # The losses go through float32 in `train`: 2^-24 is its rounding, 40 the number of updates that carry it on.
    assert losses(config) == pytest.approx(expected, rel=40 * 2**-24)


def test_d2l_init_has_one_bias_a_gate() -> None:
    config = preset("lstm-scratch")
    torch.manual_seed(0)
    model = CharLM(50, config)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            assert 0.009 < p.std().item() < 0.011, name
        else:
            assert p.eq(0).all(), name
            assert p.requires_grad == ("bias_hh" not in name)


def test_nan_stops_and_keeps_the_last_good_weights() -> None:
    kept: list[dict[str, torch.Tensor]] = []

    def spoil(model: CharLM, epoch: Epoch) -> None:
        kept.append({name: p.clone() for name, p in model.state_dict().items()})
        if epoch.number == 2:
            with torch.no_grad():
                model.output.bias[0] = math.nan

    config = replace(preset("gru"), **{**SMALL, "epochs": 5})
    with pytest.raises(Diverged, match=r"diverged in epoch 3 \(loss nan\): stopped; .* after epoch 2") as caught:
        train(IDS, len(VOCABULARY), config, on_epoch=spoil)
    assert caught.value.good == 2
    for name, p in caught.value.model.state_dict().items():
        assert torch.equal(p, kept[1][name]), name


def test_weights_that_overflow_in_the_first_epoch() -> None:
    config = replace(preset("gru"), optimizer="sgd", lr=1e38, **SMALL)
    with pytest.raises(Diverged, match="the weights kept are the initial ones") as caught:
        train(IDS, len(VOCABULARY), config)
    assert all(p.isfinite().all() for p in caught.value.model.parameters())


def test_divergence_in_a_long_first_epoch_keeps_what_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcells.charlm.training.REFRESHED", 20)
    monkeypatch.setattr("fastcells.charlm.training.CHECKED", 5)
    training = Training(IDS, len(VOCABULARY), replace(preset("gru"), **{**SMALL, "batch": 2, "steps": 4}))
    assert training.per_epoch > 100
    weights: dict[int, torch.Tensor] = {}

    def spoil(_: int) -> None:
        weights[training.place.step] = training.model.output.weight.detach().clone()
        if training.place.step == 70:
            with torch.no_grad():
                training.model.output.bias[0] = math.nan

    with pytest.raises(Diverged, match=r"in epoch 1 .* the weights kept are those after step \d0\.") as caught:
        training.run(on_step=spoil)
    assert 20 <= caught.value.step <= 70
    assert torch.equal(caught.value.model.output.weight, weights[caught.value.step])


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(1027)) == pytest.approx(1027)
    assert perplexity(1e4) == math.inf


def test_bidirectional_warns_once() -> None:
    with pytest.warns(UserWarning, match="sees the characters that it has to predict") as record:
        train(IDS, len(VOCABULARY), replace(preset("gru-bidirectional"), **SMALL))
    assert len(record) == 1


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtype(dtype: str) -> None:
    model = train(IDS, len(VOCABULARY), replace(preset("gru"), dtype=dtype, **SMALL))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_corpus_shorter_than_one_batch() -> None:
    with pytest.raises(InputError, match="has 50 characters, and one batch of 8 x 9 needs 80"):
        train(IDS[:50], len(VOCABULARY), replace(preset("gru"), **SMALL))


@pytest.mark.parametrize("name", ["layers", "hidden", "epochs", "report", "steps", "batch"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_non_positive_sizes(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} must be a positive integer, got {value}"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("lr", 0.0), ("lr", math.nan), ("clip", -1.0)])
def test_non_positive_rates(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be positive and finite, got {value}"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["cell", "nonlinearity", "init", "optimizer", "sampling", "dtype"])
def test_unknown_choice_lists_the_known(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be one of .*, got 'other'"):
        Config(**{name: "other"})


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(InputError, match=f"unknown preset 'gro'; there are {', '.join(PRESETS)}"):
        preset("gro")
