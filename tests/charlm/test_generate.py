"""Generation: greedy, sampled, warmed up on the prefix."""

from __future__ import annotations

import pytest
import torch

from fastcells.charlm import CharLM, Config, InputError, Vocabulary, generate

VOCABULARY = Vocabulary("abcdefgh ")


@pytest.fixture(params=["rnn", "gru", "lstm"])
def model(request: pytest.FixtureRequest) -> CharLM:
    model = CharLM(len(VOCABULARY), Config(cell=request.param, hidden=16, layers=2))
    with torch.no_grad():  # far from uniform, so that the likeliest character is no accident of rounding
        for p in model.parameters():
            p.mul_(8)
    return model


def greedy_from_scratch(model: CharLM, prefix: str, length: int) -> str:
    """Each character from the whole text so far: no carried state that could be wrong."""
    text = prefix
    for _ in range(length):
        logits, _ = model(VOCABULARY.encode(text).unsqueeze(0))
        text += VOCABULARY.decode([int(logits[0, -1].argmax())])
    return text


@pytest.mark.parametrize("prefix", ["a", "abc def"])
def test_greedy_is_the_likeliest_given_all_the_text(model: CharLM, prefix: str) -> None:
    assert generate(model, VOCABULARY, prefix, 20) == greedy_from_scratch(model, prefix, 20)


def test_length_0_returns_the_prefix(model: CharLM) -> None:
    assert generate(model, VOCABULARY, "abc", 0) == "abc"


def test_top_1_is_greedy_at_any_temperature(model: CharLM) -> None:
    assert generate(model, VOCABULARY, "ab", 20, temperature=5.0, top_k=1) == generate(model, VOCABULARY, "ab", 20)


def test_top_k_larger_than_the_vocabulary(model: CharLM) -> None:
    assert len(generate(model, VOCABULARY, "ab", 20, temperature=1.0, top_k=1000)) == 22


def test_same_seed_same_text(model: CharLM) -> None:
    texts = [
        generate(model, VOCABULARY, "ab", 40, temperature=2.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_draws_from_the_softmax() -> None:
    """5,000 draws of one character against its probabilities; 5 standard deviations of a binomial count."""
    model = CharLM(len(VOCABULARY), Config(hidden=16))
    logits, _ = model(VOCABULARY.encode("a").unsqueeze(0))
    expected = torch.softmax(logits[0, -1].detach().double() / 0.5, 0)
    generator = torch.Generator().manual_seed(0)
    draws = "".join(generate(model, VOCABULARY, "a", 1, temperature=0.5, generator=generator)[1] for _ in range(5000))
    for character, p in zip(VOCABULARY.characters, expected.tolist(), strict=True):
        assert abs(draws.count(character) - 5000 * p) < 5 * (5000 * p * (1 - p)) ** 0.5


def test_top_k_never_draws_another(model: CharLM) -> None:
    logits, _ = model(VOCABULARY.encode("a").unsqueeze(0))
    likely = VOCABULARY.decode(logits[0, -1].topk(3).indices.tolist())
    drawn = {generate(model, VOCABULARY, "a", 1, temperature=50.0, top_k=3)[1] for _ in range(200)}
    assert drawn == set(likely)


def test_the_model_is_left_in_its_mode(model: CharLM) -> None:
    for mode in (True, False):
        model.train(mode)
        generate(model, VOCABULARY, "a", 2)
        assert model.training == mode


def test_unknown_character_in_the_prefix(model: CharLM) -> None:
    with pytest.raises(InputError, match=r"character 'x' \(U\+0078\) at position 2 .* --unknown skip"):
        generate(model, VOCABULARY, "abx", 3)
    skipped = generate(model, VOCABULARY, "axb", 3, unknown="skip")
    assert skipped == generate(model, VOCABULARY, "ab", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix": ""}, "the prefix '' has no character that the model knows"),
        ({"prefix": "xyz", "unknown": "skip"}, "the prefix 'xyz' has no character that the model knows"),
        ({"unknown": "ignore"}, "unknown must be 'error', 'skip' or 'replace', got 'ignore'"),
        ({"length": -1}, "length must not be negative, got -1"),
        ({"temperature": -0.5}, "temperature must be 0 or above, got -0.5"),
        ({"temperature": float("nan")}, "temperature must be 0 or above, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
    ],
)
def test_bad_input(model: CharLM, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(model, VOCABULARY, **{"prefix": "a", "length": 1, **arguments})
