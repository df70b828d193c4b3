"""Draws what a benchmark measured as horizontal bars, into a PNG."""

import pathlib

import matplotlib

matplotlib.use("Agg")  # no screen
from matplotlib import pyplot  # noqa: E402  (the backend is chosen before)


def draw_bars(path: pathlib.Path, title: str, bars: dict[str, float], *, unit: str) -> None:
    """Bars from 0, from the top in the order that they come in, each with its value."""
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(bars)), layout="constrained")
    drawn = axes.barh(list(bars), list(bars.values()))
    axes.bar_label(drawn, [f"{value:,.0f} {unit}" for value in bars.values()], padding=6)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(title)
    figure.savefig(path)
    pyplot.close(figure)
