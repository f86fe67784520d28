"""`python -m tests.support.check_run RUN LIMIT`: a run on the bundled lyrics is below LIMIT and writes their words."""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F

from fastcells.charlm import bundled_corpus, generate, load, perplexity
from fastcells.charlm.sampling import batches


def main(path: str, limit: float) -> None:
    """Exit with a message unless the run holds."""
    model, vocabulary, config = load(path)
    corpus = bundled_corpus("zh")
    ids = vocabulary.encode(corpus)
    losses, state = [], None
    with torch.no_grad():  # the saved model on the text as it was trained on it: no figure of the run is taken on trust
        for x, y in batches(ids, config.sampling, config.batch, config.steps, torch.Generator()):
            logits, state = model(x, state)
            losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    found = perplexity(sum(losses) / len(losses))
    text = generate(model, vocabulary, "我们", 100)
    known_words = set(corpus.split())
    words = text.split()[:-1]  # the last one may be cut off
    known = sum(word in known_words for word in words) / len(words)
    print(f"perplexity {found:.4f}, {known:.0%} known words: {text}")
    if not found < limit:
        sys.exit(f"the perplexity should be below {limit}")
    if known < 0.8:
        sys.exit("most of the generated words should stand in the corpus")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
