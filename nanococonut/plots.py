"""log.csv and measured numbers -> png."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette: told apart by everyone
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)


def read_log(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """(split, metric) -> [(step, stage, value)] of a log.csv."""
    series = defaultdict(list)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            series[row["split"], row["metric"]].append((int(row["step"]), int(row["stage"]), float(row["value"])))
    return series


def curves(log: Path, out: Path) -> None:
    """Training loss above, accuracy on valid below, over steps; a grey line where a stage begins."""
    series = read_log(log)
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 5), sharex=True, layout="constrained")
    loss = series["train", "loss"]
    top.plot([step for step, _, _ in loss], [value for _, _, value in loss], color=BLUE, linewidth=1)
    top.set(ylabel="training loss (nats per token)", yscale="log")
    for metric, colour, style in (("accuracy", ORANGE, "o-"), ("first_step_is_fact", GREY, "s--")):
        points = series["valid", metric]
        if points:
            label = metric.replace("_", " ")
            bottom.plot([p[0] for p in points], [p[2] for p in points], style, color=colour, label=label, markersize=4)
    bottom.set(xlabel="optimizer step", ylabel="share of valid", ylim=(0, 1.02))
    if bottom.lines:
        bottom.legend(loc="lower right", frameon=False)
    first = {}
    for step, stage, _ in loss:
        first.setdefault(stage, step)
    for stage, step in first.items():
        for axes in (top, bottom):
            axes.axvline(step, color=GREY, linewidth=0.6, alpha=0.6)
        where = dict(transform=top.get_xaxis_transform(), fontsize=8, color=GREY)
        top.text(step, 1.01, f" stage {stage}" if stage == 0 else f" {stage}", **where)
    finish(fig, out)


def table1(rows: list[dict], paper: dict[str, float], baselines: dict[str, float], out: Path) -> None:
    """Accuracy of each method: a dot a seed and their mean, the paper's as a ring, shortcuts as lines from above."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    fig, axes = plt.subplots(figsize=(7.5, 0.42 * len(methods) + 1.4), layout="constrained")
    for y, method in enumerate(methods):
        values = [100 * row["accuracy"] for row in rows if row["method"] == method]
        axes.plot(values, [y] * len(values), "o", color=BLUE, alpha=0.45, markersize=5)
        axes.plot([sum(values) / len(values)], [y], "|", color=BLUE, markersize=16, markeredgewidth=2)
        if method in paper:
            axes.plot([paper[method]], [y], "o", color=ORANGE, markerfacecolor="none", markersize=8)
    for i, (rule, share) in enumerate(baselines.items()):
        axes.axvline(100 * share, color=GREY, linewidth=0.8, linestyle=(0, (1 + i, 2)), label=rule)
    axes.plot([], [], "o", color=BLUE, alpha=0.45, label="one seed")
    axes.plot([], [], "o", color=ORANGE, markerfacecolor="none", label="the paper, at its size")
    axes.set(yticks=range(len(methods)), yticklabels=methods, xlabel="accuracy on test (%)", xlim=(None, 101))
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    finish(fig, out)


def finish(fig, out: Path) -> None:
    """Writes the figure, whole or not at all."""
    for axes in fig.axes:
        axes.spines[["top", "right"]].set_visible(False)
    temporary = out.with_suffix(".tmp.png")
    fig.savefig(temporary, dpi=120)
    plt.close(fig)
    temporary.replace(out)


def lines(panels: list[tuple[str, str, dict]], out: Path) -> None:
    """A panel for each (x label, y label, {label: [(x, y) or (x, y, low, high)]}), at most two side by side."""
    width = min(2, len(panels))
    height = -(-len(panels) // width)
    fig, grid = plt.subplots(height, width, figsize=(7.5, 3.2 * height), layout="constrained", squeeze=False)
    for axes, (xlabel, ylabel, curves) in zip(grid.flat, panels, strict=False):
        for i, (label, points) in enumerate(curves.items()):
            x, y, *band = zip(*points, strict=True) if points else ((), ())
            mark = "osD^vPX"[i % 7] if len(x) < 20 else None
            axes.plot(x, y, marker=mark, color=COLOURS[i % 7], label=label, markersize=4, linewidth=1.3)
            if band:
                axes.fill_between(x, *band, color=COLOURS[i % 7], alpha=0.15, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid.flat[0].legend(frameon=False, fontsize=8)
    finish(fig, out)


def verdicts(cells: list[dict], out: Path) -> None:
    """Stacked bars of the verdicts against the number of thoughts, and accuracy as a line."""
    fig, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    x, bottom = [cell["latent"] for cell in cells], [0.0] * len(cells)
    for colour, verdict in zip((BLUE, *COLOURS[5:0:-1]), cells[0]["verdicts"], strict=False):
        share = [cell["verdicts"][verdict] / sum(cell["verdicts"].values()) for cell in cells]
        axes.bar(x, share, bottom=bottom, color=colour, label=verdict.replace("_", " "), width=0.7)
        bottom = [a + b for a, b in zip(bottom, share, strict=True)]
    axes.plot(x, [cell["accuracy"] for cell in cells], "k.-", label="accuracy")
    axes.set(xlabel="thoughts", ylabel="share of problems", xticks=x, ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1, 0.5), loc="center left")
    finish(fig, out)
