"""A character language model: corpus, model, training, generation, run folders and the command line."""

from fastcells.charlm.checkpoint import load
from fastcells.charlm.choose import Choosing
from fastcells.charlm.corpus import bundled_corpus, read_corpus
from fastcells.charlm.decode import Reading
from fastcells.charlm.epoch import Diverged, Epoch, Interrupted, perplexity
from fastcells.charlm.errors import InputError
from fastcells.charlm.generate import generate, generate_batch, stream
from fastcells.charlm.model import CharLM
from fastcells.charlm.presets import PRESETS, Config, preset
from fastcells.charlm.runfolder import RunFolder
from fastcells.charlm.train import train
from fastcells.charlm.training import Training
from fastcells.charlm.vocabulary import Vocabulary

__all__ = [
    "PRESETS",
    "CharLM",
    "Choosing",
    "Config",
    "Diverged",
    "Epoch",
    "InputError",
    "Interrupted",
    "Reading",
    "RunFolder",
    "Training",
    "Vocabulary",
    "bundled_corpus",
    "generate",
    "generate_batch",
    "load",
    "perplexity",
    "preset",
    "read_corpus",
    "stream",
    "train",
]
