"""log.csv and measured numbers -> png."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from nanococonut import data

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette: told apart by everyone
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, "black")


def read_log(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """(split, metric) -> [(step, stage, value)] of a log.csv."""
    series = defaultdict(list)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            series[row["split"], row["metric"]].append((int(row["step"]), int(row["stage"]), float(row["value"])))
    return series


def curves(log: Path, out: Path) -> None:
    """Training loss above, accuracy on valid below, over steps; a grey line where a stage begins."""
    series, colours = read_log(log), {}
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 5), sharex=True, layout="constrained")
    loss = series["train", "loss"]
    draw(top, colours, "", "training loss (nats per token)", {"loss": [p[::2] for p in loss]})
    shown = {m: [p[::2] for p in series["valid", m]] for m in ("accuracy", "first_step_is_fact") if series["valid", m]}
    draw(bottom, colours, "optimizer step", "share of valid", shown)
    top.set_yscale("log")
    bottom.set_ylim(0, 1.02)
    if shown:
        bottom.legend(loc="lower right", frameon=False)
    for stage, step in {stage: step for step, stage, _ in reversed(loss)}.items():  # its first step
        for axes in (top, bottom):
            axes.axvline(step, color=GREY, linewidth=0.6, alpha=0.6)
        text = f" {'stage ' * (not stage)}{stage}"
        top.text(step, 1.01, text, transform=top.get_xaxis_transform(), fontsize=8, color=GREY)
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


def draw(axes, colours: dict, xlabel: str, ylabel: str, curves: dict, stacked: bool = False) -> None:
    """Curves {label: [(x, y) or (x, y, low, high)]} as lines or stacked bars; one point at x = None: a dashed level.

    A label has one colour and marker in all the axes that share the dict colours.
    """
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    bottom = 0
    for label, points in curves.items():
        i = colours.setdefault(label, len(colours)) % len(COLOURS)
        style, soft = dict(color=COLOURS[i], label=label.replace("_", " ")), dict(color=COLOURS[i], alpha=0.12, lw=0)
        x, y, *band = zip(*points, strict=True) if points else ((), ())
        if x[:1] == (None,):
            axes.axhline(*y, linestyle=(0, (1 + i % 5, 2)), linewidth=1.3, **style)
            axes.axhspan(*band[0], *band[1], **soft)
        elif stacked:
            axes.bar(x, y, bottom=bottom, width=0.7, **style)
            bottom = np.add(bottom, y)
        else:
            axes.plot(x, y, marker="osD^vPX*"[i] if len(x) < 20 else None, markersize=4, linewidth=1.3, **style)
            axes.fill_between(x, *(band or (y, y)), **soft)


def lines(panels: list[tuple], out: Path) -> None:
    """A panel for each (x label, y label, curves[, stacked]) of draw(), two or three side by side."""
    width = min(2 + len(panels) % 2, len(panels))
    height = -(-len(panels) // width)
    fig, grid = plt.subplots(height, width, figsize=(7.5, 3 * height + 0.5), layout="constrained", squeeze=False)
    colours, handles = {}, {}
    for axes, panel in zip(grid.flat, panels, strict=True):
        draw(axes, colours, *panel)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    finish(fig, out)


def tree(row: dict, values, out: Path) -> None:
    """What the root reaches, a line for each depth d; over a node its value after d thoughts; the chain is orange."""
    depth, path = data.distances(row["edges"], row["root"]), data.chain_of(row)
    levels = [[v for v in depth if depth[v] == d] for d in range(max(depth.values()) + 1)]
    at = {v: (i - (len(level) - 1) / 2, -d) for d, level in enumerate(levels) for i, v in enumerate(level)}
    (fig, axes), boxes = plt.subplots(figsize=(7.5, 1 + 0.75 * len(levels)), layout="constrained"), {}
    for v, (x, y) in at.items():
        box = dict(boxstyle="round,pad=0.25", facecolor="white", edgecolor=ORANGE if v in path else GREY)
        boxes[v] = axes.text(x, y, row["idx_to_symbol"][v], ha="center", va="center", bbox=box).get_bbox_patch()
        if 0 < depth[v] < values.shape[1]:
            above = dict(ha="center", zorder=5, bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
            axes.text(x, y + 0.27, f"{values[v, depth[v]]:.2f}", color=BLUE, **above)
    for a, b in (edge for edge in row["edges"] if edge[0] in depth):
        style = dict(color=ORANGE if (a, b) in zip(path, path[1:], strict=False) else GREY, arrowstyle="-|>", shrinkA=0)
        bow = f"arc3,rad={0 if depth[b] == depth[a] + 1 else 0.3}"
        style |= dict(connectionstyle=bow, shrinkB=1, patchA=boxes[a], patchB=boxes[b])
        axes.annotate("", at[b], at[a], arrowprops=style)
    half, n = max(map(len, levels)) / 2, len(levels)
    axes.set(xlim=(-half, half), ylim=(0.4 - n, 0.4), xticks=[], yticks=range(0, -n, -1), yticklabels=range(n))
    axes.set_ylabel("steps from the root = thoughts")
    axes.set_xlabel("orange: the shortest chain; blue: how likely the chain goes on from there, not renormalised")
    finish(fig, out)
