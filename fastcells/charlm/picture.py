"""A run's curves as a picture: what was learned, what was measured, and the learning rate."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font

from fastcells.charlm.runfolder import RunFolder

FILE = "perplexity.png"


def draw(run: RunFolder) -> None:
    """Write perplexity.png: a point is a point, so that one epoch is a picture too.

    Raises:
        OSError: it cannot be written. InputError: the metrics are damaged.
    """
    rows = run.metrics()
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(rows) < 30 else ""
    for column, label in (("perplexity", "training"), ("valid_perplexity", "validation")):
        points = [(row["epoch"], row[column]) for row in rows if row.get(column, float("inf")) < float("inf")]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.set(xlabel="epoch", ylabel="perplexity", yscale="log")
    axes.grid(alpha=0.3, which="both")
    rates = axes.twinx()
    points = [(row["epoch"], row["learning_rate"]) for row in rows if "learning_rate" in row]
    if points:
        rates.plot(*zip(*points, strict=True), color="gray", linestyle=":", marker=marker, label="learning rate")
    rates.set(ylabel="learning rate", ylim=(0, None))
    lines = [*axes.get_lines(), *rates.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines])
    name, font = run.path.resolve().name, font_for(run.path.resolve().name)
    if font is not None:
        axes.set_title(name, family=font)
    figure.savefig(run.path / FILE, dpi=150)


def font_for(text: str) -> str | None:
    """A font that shows every character of a text, matplotlib's own first; None if there is none here."""
    needed = {ord(character) for character in text}
    fonts = sorted(fontManager.ttflist, key=lambda font: (font.name != "DejaVu Sans", font.name))
    for font in fonts:
        try:
            shows = font.style == "normal" and not font.name.startswith("Last Resort")  # which has boxes for all
            if shows and needed <= set(get_font(font.fname).get_charmap()):
                return font.name
        except (OSError, RuntimeError):  # a file that has gone, or is no font
            continue
    return None
