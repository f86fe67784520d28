"""`fastcells eval`: perplexity and bits per character of a text, by a trained model."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fastcells.charlm import checkpoint
from fastcells.charlm.corpus import corpus_pieces
from fastcells.charlm.decode import Reading
from fastcells.charlm.device import device_of
from fastcells.charlm.epoch import perplexity
from fastcells.charlm.evaluate import bits, mean_loss
from fastcells.charlm.idfile import id_type, open_ids, write_ids
from fastcells.charlm.runfolder import RunFolder
from fastcells.charlm.vocabulary import Vocabulary


def eval_command(options: argparse.Namespace) -> int:
    """Print one line of figures and return the exit status."""
    model, vocabulary, config = checkpoint.load(options.run, device_of(options.device), impl=options.impl)
    newlines = options.newlines or RunFolder.find(options.run).description()[2].get("newlines", "space")
    reading = Reading(options.encoding, newlines, options.control)
    pieces = corpus_pieces(options.corpus, options.chars, reading)
    with tempfile.TemporaryDirectory() as folder:  # a long text does not have to fit the memory
        path = Path(folder, "ids.npy")
        write_ids(path, _ids(pieces, vocabulary, options.unknown), id_type(len(vocabulary)))
        ids = open_ids(path, None)
        loss = mean_loss(model, ids, config.batch, config.steps)
    print(f"perplexity {perplexity(loss):.4f}  {bits(loss):.4f} bits a character  {len(ids):,} characters")
    return 0


def _ids(pieces: Iterable[str], vocabulary: Vocabulary, unknown: str) -> Iterator[np.ndarray]:
    """The ids of each piece; a position in an error is counted from the beginning of the text."""
    offset = 0
    for text in pieces:
        yield vocabulary.encode(text, unknown=unknown, offset=offset).numpy()
        offset += len(text)
