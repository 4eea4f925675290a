"""Draws curves, in colours that are safe for colour-blind readers."""

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanococonut import files

# Okabe and Ito's palette.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, "black")
MARKERS = "osD^vPX*"  # one for each colour
matplotlib.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
        "savefig.dpi": 120,
        "savefig.format": "png",
    }
)


def lines(panels: list[tuple[str, str, dict]], out: Path) -> None:
    """Saves panels of curves side by side, with one legend for all of them.

    A panel is (x label, y label, {label: [(x, y) or (x, y, low, high)]}). A label has the same
    colour in all panels.
    """
    n_columns = min(3 if len(panels) % 2 else 2, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(7.5, 3 * n_rows + 0.5))
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False).flat
    numbers = {}  # label -> its number among those of all panels
    handles = {}  # label -> what the legend shows beside it
    for axes, (xlabel, ylabel, curve_of) in zip(all_axes, panels, strict=True):
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for label, points in curve_of.items():
            number = numbers.setdefault(label, len(numbers))
            draw_curve(axes, label, points, number)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    # Labels in a line of the legend: as many as fit, up to five.
    longest = max(map(len, numbers), default=0)
    n_beside = max(1, min(5, 120 // (6 + longest)))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=n_beside, fontsize=8)
    files.write_atomically(out, figure.savefig)


def draw_curve(axes: Axes, label: str, points: list[tuple], number: int) -> None:
    """Draws a curve in the colour of its number, with a band between low and high if they are."""
    i = number % len(COLOURS)
    x, y, band = (), (), []
    if points:
        x, y, *band = zip(*points, strict=True)
    marker = MARKERS[i] if len(x) < 20 else None
    axes.plot(x, y, color=COLOURS[i], label=label, linewidth=1.3, marker=marker, markersize=4)
    low, high = band or (y, y)
    axes.fill_between(x, low, high, color=COLOURS[i], alpha=0.12, lw=0)


def curves(series: dict[tuple[str, str], list[tuple[int, int, float]]], out: Path) -> None:
    """Saves the losses, the accuracy on valid and the stage over the steps of a run.

    series  as from log.read()
    """
    found = {}
    for (_, metric), points in series.items():
        found[metric] = [(step, value) for step, _, value in points]
    found["stage"] = [(step, stage) for step, stage, _ in series["train", "loss"]]
    metrics_of = {
        "loss (nats)": ["loss", "next_word_loss"],
        "accuracy on valid": ["accuracy"],
        "stage": ["stage"],
    }
    panels = []
    for ylabel, metrics in metrics_of.items():
        drawn = {metric: found[metric] for metric in metrics if metric in found}
        panels.append(("optimizer step", ylabel, drawn))
    lines(panels, out)
