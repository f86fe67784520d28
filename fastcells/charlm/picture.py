"""A run's curve as a picture."""

from __future__ import annotations

from fastcells.charlm.errors import InputError
from fastcells.charlm.runfolder import RunFolder


def check_matplotlib() -> None:
    """Raise InputError, before a run, if there will be no picture after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install 'fastcells[plot]'") from None


def draw(run: RunFolder) -> None:
    """Write perplexity.png. Raises OSError."""
    from matplotlib.figure import Figure

    rows = run.metrics()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["epoch"] for row in rows], [row["perplexity"] for row in rows])
    axes.set(xlabel="epoch", ylabel="training perplexity", yscale="log", title=run.path.name)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(run.path / "perplexity.png", dpi=150)
