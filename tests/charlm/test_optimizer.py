"""Updates: against torch's own by hand, in 16 bits with master weights, with accumulated batches and decays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcells.charlm import CharLM, Config, InputError, Training, Vocabulary, generate, perplexity, train
from fastcells.charlm.optimizer import Optimizer
from fastcells.charlm.stepper import CStepper, ModelStepper, stepper

TEXT = "the quick brown fox jumps over the lazy dog and the dog looks at the fox " * 8
VOCABULARY = Vocabulary(TEXT)
IDS = VOCABULARY.encode(TEXT)
SMALL = Config(hidden=16, batch=4, steps=9, epochs=2, schedule="none")
CPU = torch.device("cpu")


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5))]


def updated(config: Config, steps: int = 5) -> list[torch.Tensor]:
    ours = parameters()
    optimizer = Optimizer(ours, config, CPU)
    for i in range(steps):
        optimizer.backward(sum(((p + i) ** 2).sum() for p in ours))
        optimizer.step(0.1)
    return [p.detach() for p in ours]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weights_decay_and_biases_do_not(name: str) -> None:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    found = updated(replace(SMALL, optimizer=name, weight_decay=0.3))
    for p, ours, decay in zip(parameters(), found, (0.3, 0.0), strict=True):
        theirs = kind([p], lr=0.1, weight_decay=decay)
        for i in range(5):
            theirs.zero_grad()
            ((p + i) ** 2).sum().backward()
            theirs.step()
        torch.testing.assert_close(ours, p.detach())
    assert not torch.equal(found[0], updated(replace(SMALL, optimizer=name))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_move_by_less_than_their_rounding(dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(4, dtype=dtype))
    config = replace(SMALL, optimizer="sgd", dtype=str(dtype).removeprefix("torch."))
    optimizer = Optimizer([p], config, CPU)
    for _ in range(1000):
        optimizer.backward((p * 0 + p).sum())  # a gradient of 1
        optimizer.step(1e-4)
    assert p.dtype == dtype
    assert p.tolist() == pytest.approx([0.9] * 4, abs=0.004), "1 - 0.0001 is 1 in 16 bits"


def test_float16_scales_small_gradients_and_leaves_out_overflows() -> None:
    p = nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = Optimizer([p], replace(SMALL, optimizer="sgd", dtype="float16"), CPU)
    optimizer.backward((p.float() * 1e-8).sum())  # 0 in float16
    optimizer.step(1e7)
    assert p.tolist() == pytest.approx([0.9] * 4, abs=1e-2)
    scale = optimizer.scaler.get_scale()
    optimizer.backward((p.float() * 1e8).sum())
    before = p.clone()
    optimizer.step(1.0)
    assert torch.equal(p, before) and optimizer.scaler.get_scale() < scale


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_learn(dtype: str) -> None:
    losses: list[float] = []
    config = replace(SMALL, hidden=32, epochs=30, lr=1e-2, dtype=dtype)
    train(IDS, len(VOCABULARY), config, on_epoch=lambda _, epoch: losses.append(epoch.loss))
    assert perplexity(losses[-1]) < 2.5


def test_accumulated_batches_are_one_step() -> None:
    """Two windows of 9 steps, with the state detached in between, against a loop that is written out."""
    config = replace(SMALL, optimizer="sgd", lr=0.5, clip=0.1, accumulate=2, epochs=1, dtype="float64")
    training = Training(IDS, len(VOCABULARY), config)
    torch.manual_seed(config.seed)
    model = CharLM(len(VOCABULARY), config).double()
    assert training.per_epoch == 8
    training.run()
    rows, state = IDS[: len(IDS) // 4 * 4].view(4, -1), None
    for start in range(0, 16 * 9, 18):
        model.zero_grad()
        for at in (start, start + 9):
            logits, state = model(rows[:, at : at + 9], None if state is None else state.detach())
            (F.cross_entropy(logits.flatten(0, 1), rows[:, at + 1 : at + 10].flatten()) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)  # the losses go through float32


def test_a_last_group_may_be_smaller() -> None:
    training = Training(IDS, len(VOCABULARY), replace(SMALL, accumulate=5, epochs=1))
    assert training.per_epoch == 4  # 16 batches
    assert training.run() and training.place.step == 4


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_tied_weights_embed_the_characters(cell: str) -> None:
    config = replace(SMALL, cell=cell, layers=2, tied=True)
    model = CharLM(len(VOCABULARY), config)
    assert model.layer.input_size == 16
    ids = IDS[:20].view(1, -1)
    hidden, _ = model.layer(F.embedding(ids, model.output.weight))
    torch.testing.assert_close(model(ids)[0], model.output(hidden))
    trained = train(IDS, len(VOCABULARY), replace(config, epochs=20))
    step = stepper(trained)
    plain = ModelStepper(trained)
    with torch.no_grad():
        for token in IDS[:9].tolist():
            torch.testing.assert_close(step(token), plain(token), rtol=1e-4, atol=1e-5)
    assert isinstance(step, CStepper) or stepper(CharLM(9, SMALL)).__class__ is ModelStepper
    assert generate(trained, VOCABULARY, "the ", 5).startswith("the ")


def test_dropout_is_for_training() -> None:
    config = replace(SMALL, layers=2, dropout=0.5)
    model = CharLM(len(VOCABULARY), config)
    ids = IDS[:20].view(1, -1)
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.5}, "dropout 0.5 lies between layers, and there is one: set layers"),
        ({"dropout": 1.0, "layers": 2}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or above and finite, got -1.0"),
        ({"accumulate": 0}, "accumulate must be a positive integer, got 0"),
        ({"compile": 1}, "compile must be true or false, got 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **options)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Dynamo and autograd see it; what a compiler makes of that is torch's matter, and takes it a minute."""
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, found in losses.items():
        config = replace(SMALL, epochs=1, compile=compiled)
        train(IDS, len(VOCABULARY), config, on_epoch=lambda _, epoch, found=found: found.append(epoch.loss))
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
