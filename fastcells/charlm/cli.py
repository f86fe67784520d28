"""The command line: `fastcells train [CORPUS]`, `fastcells generate RUN --prefix TEXT`, `fastcells doctor`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

import fastcells
from fastcells import doctor
from fastcells.charlm import checkpoint, presets
from fastcells.charlm.corpus import BUNDLED, Vocabulary, bundled_corpus, read_corpus
from fastcells.charlm.errors import InputError
from fastcells.charlm.generate import generate
from fastcells.charlm.progress import Progress
from fastcells.charlm.sampling import SAMPLING, check_length
from fastcells.charlm.train import Diverged, train
from fastcells.dispatch import IMPLEMENTATIONS

BUNDLED_PREFIXES = {"zh": ["我们", "风吹过来"], "en": ["and the", "goodbye to the"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 (diverged or interrupted) or 2 (bad input)."""
    options = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"fastcells: warning: {message}", file=sys.stderr)
        try:
            if options.command == "doctor":
                return doctor.main()
            return _train(options) if options.command == "train" else _generate(options)
        except (InputError, OSError) as error:
            print(f"fastcells: error: {error}", file=sys.stderr)
            return 2


def _train(options: argparse.Namespace) -> int:
    config = _config(options)
    device = _device(options.device)
    if options.plot:
        _check_matplotlib()
    if options.corpus is not None:
        name, text = options.corpus, read_corpus(options.corpus, options.chars)
        prefixes = options.prefix or [(text.split() or [text])[0][:8]]
    else:
        name = options.bundled
        text, prefixes = bundled_corpus(name, options.chars), options.prefix or BUNDLED_PREFIXES[name]
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    check_length(len(ids), config.sampling, config.batch, config.steps)
    if not options.prefix:
        prefixes = [p for p in prefixes if set(p) <= set(vocabulary.characters)] or [text[0]]
    for prefix in prefixes:
        vocabulary.encode(prefix)  # an unknown character is reported now, not after the first epochs

    provenance = {
        "corpus": str(name),
        "characters": str(len(ids)),
        "device": str(device),
        "fastcells": fastcells.__version__,
        "torch": torch.__version__,
    }
    run = checkpoint.RunFolder.create(options.out or _unused_folder(options.preset), config, vocabulary, provenance)
    print(f"corpus {name}: {len(ids):,} characters, {len(vocabulary):,} distinct")
    progress = Progress(run, config, ids, vocabulary, prefixes, options.length)
    status = 0
    try:
        train(ids, len(vocabulary), config, device=device, on_step=progress.step, on_epoch=progress.epoch)
        progress.finish()
    except Diverged as error:
        status = 1
        progress.say(f"fastcells: error: {error}", file=sys.stderr)
        progress.save(error.model)
    except KeyboardInterrupt:
        status = 1
        progress.say("interrupted", file=sys.stderr)
        progress.finish()
    finally:
        progress.close()
    if options.plot and run.metrics():
        _plot(run)
    if status == 0:
        print(f"try: fastcells generate {run.path} --prefix {prefixes[0]!r} --temperature 0.8")
    return status


def _generate(options: argparse.Namespace) -> int:
    model, vocabulary, _ = checkpoint.load(options.run, _device(options.device))
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.top_k is None else 1.0
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    text = generate(
        model,
        vocabulary,
        options.prefix,
        options.length,
        temperature=temperature,
        top_k=options.top_k,
        unknown=options.unknown,
        generator=generator,
    )
    print(text)
    return 0


def _config(options: argparse.Namespace) -> presets.Config:
    """The preset with what the command line overrides."""
    given = {f.name: getattr(options, f.name) for f in fields(presets.Config) if getattr(options, f.name) is not None}
    if given.get("clip") == "none":
        given["clip"] = None
    return replace(presets.preset(options.preset), **given)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _unused_folder(preset: str) -> Path:
    number = 1
    while Path("runs", f"{preset}-{number}").exists():
        number += 1
    return Path("runs", f"{preset}-{number}")


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install 'fastcells[plot]'") from None


def _plot(run: checkpoint.RunFolder) -> None:
    from matplotlib.figure import Figure

    rows = run.metrics()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["epoch"] for row in rows], [row["perplexity"] for row in rows])
    axes.set(xlabel="epoch", ylabel="training perplexity", yscale="log", title=run.path.name)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(run.path / "perplexity.png", dpi=150)


def _positive(text: str) -> int:
    value = int(text) if text.lstrip("+-").isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def _clip(text: str) -> float | str:
    return text if text == "none" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastcells", description="Train a character language model and use it.")
    parser.add_argument("--version", action="version", version=f"fastcells {fastcells.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    t = commands.add_parser("train", help="learn a text", description="Learn a text, character by character.")
    source = t.add_mutually_exclusive_group()
    source.add_argument("corpus", nargs="?", help="a UTF-8 .txt file, a .zip that holds one, or - for standard input")
    source.add_argument("--bundled", choices=list(BUNDLED), default="zh", help="lyrics that come along (default zh)")
    t.add_argument("--chars", type=_positive, metavar="N", help="keep the first N characters")
    t.add_argument("--preset", choices=list(presets.PRESETS), default="gru", help="where the options below start from")
    t.add_argument("--cell", choices=presets.CELLS)
    t.add_argument("--nonlinearity", choices=presets.NONLINEARITIES, help="of the rnn cell")
    t.add_argument("--reset-after", action=argparse.BooleanOptionalAction, help="of the gru cell: torch's variant")
    t.add_argument("--layers", type=_positive, metavar="N")
    t.add_argument("--hidden", type=_positive, metavar="N", help="size of the hidden state")
    t.add_argument("--bidirectional", action=argparse.BooleanOptionalAction)
    t.add_argument("--init", choices=presets.INITS, help="torch: uniform; d2l: N(0, 0.01), biases 0")
    t.add_argument("--optimizer", choices=presets.OPTIMIZERS)
    t.add_argument("--lr", type=float, help="learning rate")
    t.add_argument("--clip", type=_clip, metavar="NORM", help="largest gradient norm, or none")
    t.add_argument("--sampling", choices=SAMPLING)
    t.add_argument("--epochs", type=_positive, metavar="N")
    t.add_argument("--report", type=_positive, metavar="N", help="epochs between two reports")
    t.add_argument("--steps", type=_positive, metavar="T", help="time steps of a batch")
    t.add_argument("--batch", type=_positive, metavar="B", help="sequences of a batch")
    t.add_argument("--seed", type=int)
    t.add_argument("--dtype", choices=presets.DTYPES)
    t.add_argument("--impl", choices=IMPLEMENTATIONS, help="implementation of the recurrent layer")
    t.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    t.add_argument("--out", metavar="RUN", help="folder to write (default runs/PRESET-NUMBER)")
    t.add_argument("--prefix", action="append", help="what the reports' generated lines start with; may be repeated")
    t.add_argument("--length", type=_positive, default=50, metavar="N", help="characters to generate (default 50)")
    t.add_argument("--plot", action="store_true", help="also write perplexity.png")

    g = commands.add_parser("generate", help="write text with a trained model")
    g.add_argument("run", metavar="RUN", help="folder that `fastcells train` wrote")
    g.add_argument("--prefix", required=True, help="text to go on from")
    g.add_argument("--length", type=_positive, default=100, metavar="N", help="characters to add (default 100)")
    g.add_argument("--temperature", type=float, help="0 takes the likeliest character (default, without --top-k)")
    g.add_argument("--top-k", type=_positive, metavar="K", help="draw among the K likeliest characters")
    g.add_argument("--seed", type=int, help="for the same text again")
    g.add_argument("--unknown", choices=("error", "skip"), default="error", help="characters that the model never saw")
    g.add_argument("--device", default="auto")

    help = "check every implementation on this machine against float64"
    commands.add_parser("doctor", help=help, description=f"Show the environment and {help}; exit status 1 if wrong.")
    return parser
