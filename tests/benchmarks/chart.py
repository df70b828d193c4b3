"""Draws the ratios of all benchmarks as a chart, with the floor and the aim of each, into a PNG file."""

import pathlib
from collections.abc import Sequence

import matplotlib
from measure import Row

matplotlib.use("Agg")  # needs no screen
from matplotlib import pyplot  # noqa: E402  (the backend must be chosen first)


def draw(path: pathlib.Path, title: str, rows: Sequence[Row]) -> None:
    """Draws a bar for each row. The length of a bar is its ratio divided by its floor; a mark shows the aim."""
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.5 * len(rows)), layout="constrained")
    reached = [row.floor / row.ratio if row.at_most else row.ratio / row.floor for row in rows]
    aims = [row.floor / row.aim if row.at_most else row.aim / row.floor for row in rows]
    names = [f"{row.measure}\n{row.twin}" if row.twin else row.measure for row in rows]
    bars = axes.barh(range(len(rows)), reached, color=["tab:blue" if r >= 1 else "tab:red" for r in reached])
    axes.bar_label(bars, [f"{row.ratio:.3g}" for row in rows], padding=6)
    axes.plot(aims, range(len(rows)), "k|", markersize=18, label="aim")
    axes.axvline(1, color="black", linewidth=1, label="floor")
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.legend()
    axes.set_title(title)
    figure.savefig(path)
    pyplot.close(figure)
