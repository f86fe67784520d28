"""The command line: `fastcells train [CORPUS]`, `fastcells generate RUN --prefix TEXT`, `fastcells doctor`."""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

import fastcells
from fastcells import doctor
from fastcells.charlm import checkpoint, presets
from fastcells.charlm.allocator import keep_freed_memory
from fastcells.charlm.corpus import BUNDLED, Vocabulary, bundled_corpus, read_corpus
from fastcells.charlm.errors import InputError
from fastcells.charlm.generate import encode_prefix, generate
from fastcells.charlm.model import CharLM, dtype_of
from fastcells.charlm.progress import Progress, say, silence_stdout
from fastcells.charlm.sampling import SAMPLING, check_length
from fastcells.charlm.schedule import SCHEDULES
from fastcells.charlm.train import Diverged, train
from fastcells.dispatch import IMPLEMENTATIONS, explain

BUNDLED_PREFIXES = {"zh": ["我们", "风吹过来"], "en": ["and the", "goodbye to the"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 (diverged or interrupted) or 2 (bad input)."""
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not end the training
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"fastcells: warning: {message}", file=sys.stderr)
        try:
            if options.command == "doctor":
                return doctor.main()
            return _train(options) if options.command == "train" else _generate(options)
        except BrokenPipeError:
            silence_stdout()
            return 0
        except (InputError, OSError) as error:
            print(f"fastcells: error: {error}", file=sys.stderr)
            return 2


def _train(options: argparse.Namespace) -> int:
    keep_freed_memory()
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
        encode_prefix(vocabulary, prefix)  # what is wrong with it is said now, not after the first epochs
    try:
        torch.manual_seed(config.seed)
        model = CharLM(len(vocabulary), config).to(device, dtype_of(config))
        choice = explain(model.layer, ids[:1].view(1, 1).expand(config.batch, config.steps).to(device))
    except (RuntimeError, OverflowError, TypeError) as error:  # out of memory, or an impl that cannot run here
        raise InputError(str(error).splitlines()[0]) from error

    provenance = {
        "corpus": str(name),
        "characters": str(len(ids)),
        "device": str(device),
        "fastcells": fastcells.__version__,
        "torch": torch.__version__,
    }
    run = checkpoint.RunFolder.create(options.out or _unused_folder(options.preset), config, vocabulary, provenance)
    say(f"corpus {name}: {len(ids):,} characters, {len(vocabulary):,} distinct")
    parameters = sum(p.numel() for p in model.parameters())
    say(f"model {model.layer}, {parameters:,} parameters; runs on {choice}")
    progress = Progress(run, config, model, ids, vocabulary, prefixes, options.length)
    status = 0
    try:
        with _terminations_interrupt():
            train(
                ids,
                len(vocabulary),
                config,
                device=device,
                model=model,
                on_step=progress.step,
                on_epoch=progress.epoch,
            )
        progress.finish()
    except Diverged as error:
        status = 1
        say(f"fastcells: error: {error}", file=sys.stderr)
        progress.save()
    except KeyboardInterrupt:
        status = 1
        say("interrupted", file=sys.stderr)
        progress.finish()
    finally:
        progress.close()
    if options.plot and progress.last is not None:
        _plot(run)
    if status == 0:
        path, prefix = shlex.quote(str(run.path)), shlex.quote(prefixes[0])
        say(f"try: fastcells generate {path} --prefix={prefix} --temperature 0.8")
    return status


@contextlib.contextmanager
def _terminations_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does, so that what was learned is saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _generate(options: argparse.Namespace) -> int:
    model, vocabulary, _ = checkpoint.load(options.run, _device(options.device), impl=options.impl)
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
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
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
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def _clip(text: str) -> float | str:
    try:
        return text if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or none, got {text!r}") from None


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 2**64
    if not -(2**63) <= value < 2**64:
        raise argparse.ArgumentTypeError(f"must be an integer of 64 bits, got {text!r}")
    return value


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
    t.add_argument("--loss", choices=presets.LOSSES, help="gradients of the mean over a batch's characters, or the sum")
    t.add_argument("--lr", type=float, help="learning rate")
    t.add_argument(
        "--schedule", choices=SCHEDULES, help="of the learning rate; cosine falls to 0 at the end of the run"
    )
    t.add_argument("--warmup", type=int, metavar="STEPS", help="steps in which the learning rate rises from 0")
    t.add_argument("--clip", type=_clip, metavar="NORM", help="largest gradient norm, or none")
    t.add_argument("--sampling", choices=SAMPLING)
    t.add_argument("--epochs", type=_positive, metavar="N")
    t.add_argument("--report", type=_positive, metavar="N", help="epochs between two reports")
    t.add_argument("--steps", type=_positive, metavar="T", help="time steps of a batch")
    t.add_argument("--batch", type=_positive, metavar="B", help="sequences of a batch")
    t.add_argument("--seed", type=_seed)
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
    g.add_argument("--seed", type=_seed, help="for the same text again")
    g.add_argument("--unknown", choices=("error", "skip"), default="error", help="characters that the model never saw")
    g.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto", help="implementation of the recurrent layer")
    g.add_argument("--device", default="auto")

    help = "check every implementation on this machine against float64"
    commands.add_parser("doctor", help=help, description=f"Show the environment and {help}; exit status 1 if wrong.")
    return parser
