"""The command line's options: what each subcommand takes."""

from __future__ import annotations

import argparse
import math

import fastcells
from fastcells.charlm import presets
from fastcells.charlm.corpus import BUNDLED
from fastcells.charlm.decode import CONTROLS, NEWLINES
from fastcells.charlm.sampling import SAMPLING
from fastcells.charlm.schedule import SCHEDULES
from fastcells.charlm.vocabulary import WAYS
from fastcells.command_line import positive
from fastcells.dispatch import IMPLEMENTATIONS
from fastcells.tuning import command

TEXTS = "texts to learn, one after the other: files, .gz, .zip, folders of .txt, globs, or - for standard input"
NEWLINES_HELP = "space: as the lessons do (default); keep: for code, poems and tunes"
EXIT = "exit status: 0 done, 1 not saved where it should be, 2 bad input, 3 diverged, 130 interrupted"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="fastcells", description="Train a character language model and use it.")
    parser.add_argument("--version", action="version", version=f"fastcells {fastcells.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    description = "Learn a text, character by character."
    train = commands.add_parser("train", help="learn a text", description=description, epilog=EXIT)
    _corpus(train.add_argument_group("the text"))
    _model(train.add_argument_group("the model"))
    _training(train.add_argument_group("training"))
    _run(train.add_argument_group("the run"))
    _generate(commands.add_parser("generate", help="write text with a trained model"))
    _evaluate(commands.add_parser("eval", help="perplexity and bits per character of a text"))
    help = "check every implementation on this machine against float64"
    about = f"Show the environment and {help}; exit status 1 if wrong."
    d = commands.add_parser("doctor", help=help, description=about)
    d.add_argument("--forget", action="store_true", help="instead: drop what has been measured on this machine")

    help = "measure which implementation is right and fastest on this device"
    about = f"{help[0].upper()}{help[1:]}, ahead of time, and remember it for every program of this user."
    command.add_arguments(commands.add_parser("tune", help=help, description=about))
    return parser


def _corpus(t: argparse._ArgumentGroup) -> None:
    t.add_argument("corpus", nargs="*", help=f"{TEXTS} (default: the bundled lyrics)")
    t.add_argument("--bundled", choices=list(BUNDLED), help="lyrics that come along (default zh)")
    t.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, from its checkpoint")
    t.add_argument("--chars", type=positive, metavar="N", help="keep the first N characters")
    t.add_argument("--min-count", type=positive, default=1, metavar="N", help="rarer characters become one symbol")
    _reading(t)
    t.add_argument("--validation", type=float, metavar="SHARE", help="of the text, near its end: measured, not learned")
    t.add_argument("--test", type=float, metavar="SHARE", help="of the text, at its end: measured once, at the end")


def _reading(t: argparse._ActionsContainer, newlines: str | None = None) -> None:
    t.add_argument("--encoding", default="utf-8", help="of the files (default utf-8; UTF-16 and 32 by their mark)")
    t.add_argument(
        "--newlines", choices=NEWLINES, default=None if newlines else "space", help=newlines or NEWLINES_HELP
    )
    t.add_argument("--control", choices=CONTROLS, default="error", help="control characters (default error)")


def _model(t: argparse._ArgumentGroup) -> None:
    t.add_argument("--preset", choices=list(presets.PRESETS), help="where the options start from (default gru)")
    t.add_argument("--cell", choices=presets.CELLS, help="the capitalised ones are fastcells.zoo's")
    t.add_argument("--nonlinearity", choices=presets.NONLINEARITIES, help="of the rnn cell")
    t.add_argument("--reset-after", action=argparse.BooleanOptionalAction, help="of the gru cell: torch's variant")
    t.add_argument("--layers", type=positive, metavar="N")
    t.add_argument("--hidden", type=positive, metavar="N", help="size of the hidden state")
    t.add_argument("--bidirectional", action=argparse.BooleanOptionalAction)
    t.add_argument("--tied", action=argparse.BooleanOptionalAction, help="embed characters by the output's weights")
    t.add_argument("--dropout", type=float, metavar="P", help="between layers")
    t.add_argument("--init", choices=presets.INITS, help="torch: uniform; d2l: N(0, 0.01), biases 0")
    t.add_argument("--dtype", choices=presets.DTYPES, help="16 bits have master weights in float32")
    t.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the model by torch.compile")
    t.add_argument("--impl", choices=IMPLEMENTATIONS, help="implementation of the recurrent layer")


def _training(t: argparse._ArgumentGroup) -> None:
    t.add_argument("--optimizer", choices=presets.OPTIMIZERS)
    t.add_argument("--loss", choices=presets.LOSSES, help="gradients of the mean over a batch's characters, or the sum")
    t.add_argument("--lr", type=float, help="learning rate")
    t.add_argument(
        "--schedule", choices=SCHEDULES, help="of the learning rate; cosine falls to 0 at the end of the run"
    )
    t.add_argument("--warmup", type=int, metavar="STEPS", help="steps in which the learning rate rises from 0")
    t.add_argument("--clip", type=_clip, metavar="NORM", help="largest gradient norm, or none")
    t.add_argument("--weight-decay", type=float, metavar="X", help="of weights, not of biases")
    t.add_argument("--accumulate", type=positive, metavar="N", help="batches of one step, one after the other")
    t.add_argument("--sampling", choices=SAMPLING)
    t.add_argument("--epochs", type=positive, metavar="N")
    t.add_argument("--steps", type=positive, metavar="T", help="time steps of a batch")
    t.add_argument("--batch", type=positive, metavar="B", help="sequences of a batch")
    t.add_argument("--evaluate", type=positive, metavar="STEPS", help="between looks at the validation text")
    t.add_argument("--patience", type=positive, metavar="N", help="looks without a better one, and training stops")
    t.add_argument("--seed", type=_seed)


def _run(t: argparse._ArgumentGroup) -> None:
    t.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)")
    t.add_argument(
        "--threads", type=positive, metavar="N", help="of the CPU (default: as many as there are idle cores)"
    )
    t.add_argument("--out", metavar="RUN", help="folder to write (default runs/PRESET-NUMBER)")
    t.add_argument(
        "--save-every", type=_minutes, default=2.0, metavar="MIN", help="minutes (default 2); also at a stop"
    )
    t.add_argument("--report", type=positive, metavar="N", help="epochs between two reports")
    t.add_argument(
        "--report-every", type=_minutes, default=1.0, metavar="MIN", help="minutes between lines (default 1)"
    )
    t.add_argument("--prefix", action="append", help="what the reports' generated lines start with; may be repeated")
    t.add_argument("--unknown", choices=WAYS, default="error", help="characters of a prefix that the text has not")
    t.add_argument("--length", type=positive, default=50, metavar="N", help="characters to generate (default 50)")
    t.add_argument("--plot", action="store_true", help="also write the curves, as perplexity.png")
    t.add_argument("--tensorboard", action="store_true", help="also write events, to RUN/tensorboard")
    t.add_argument("--summary", action="store_true", help="list the model's weights")


def _evaluate(e: argparse.ArgumentParser) -> None:
    e.add_argument("run", metavar="RUN", help="folder that `fastcells train` wrote")
    e.add_argument("corpus", nargs="+", metavar="TEXT", help="files, .gz, .zip, folders of .txt, globs, or -")
    e.add_argument("--chars", type=positive, metavar="N", help="measure the first N characters")
    _reading(e, newlines="as the run had them, if not said")
    e.add_argument("--unknown", choices=WAYS, default="error", help="characters that the model never saw")
    e.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto", help="implementation of the recurrent layer")
    e.add_argument("--device", default="auto")


def _generate(g: argparse.ArgumentParser) -> None:
    g.add_argument("run", metavar="RUN", help="folder that `fastcells train` wrote")
    g.add_argument("--prefix", action="append", help="text to go on from; may be repeated, all in one pass")
    g.add_argument("--prefix-file", action="append", metavar="FILE", help="a file that holds it, or -")
    g.add_argument("--samples", type=positive, default=1, metavar="N", help="texts for each prefix (default 1)")
    g.add_argument("--endless", action="store_true", help="character by character, until Ctrl-C or --stop")
    g.add_argument("--stop", metavar="TEXT", help="end before this text")
    g.add_argument("--length", type=positive, default=100, metavar="N", help="characters to add (default 100)")
    g.add_argument("--temperature", type=float, help="0 takes the likeliest character; 1 if it is to be drawn")
    g.add_argument("--top-k", type=positive, metavar="K", help="draw among the K likeliest characters")
    g.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that have a share of P together")
    g.add_argument("--min-p", type=float, metavar="P", help="draw among those P times as likely as the likeliest")
    g.add_argument("--seed", type=_seed, help="for the same text again")
    g.add_argument("--unknown", choices=WAYS, default="error", help="characters that the model never saw")
    g.add_argument("--impl", choices=IMPLEMENTATIONS, default="auto", help="implementation of the recurrent layer")
    g.add_argument("--device", default="auto")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of minutes, got {text!r}")
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
