"""log.csv and measured numbers -> png."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette: told apart by everyone


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
    bottom.legend(loc="lower right", frameon=False)
    first = {}
    for step, stage, _ in loss:
        first.setdefault(stage, step)
    for stage, step in first.items():
        for axes in (top, bottom):
            axes.axvline(step, color=GREY, linewidth=0.6, alpha=0.6)
        top.text(
            step,
            1.01,
            f" stage {stage}" if stage == 0 else f" {stage}",
            transform=top.get_xaxis_transform(),
            fontsize=8,
            color=GREY,
        )
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
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
    axes.spines[["top", "right"]].set_visible(False)
    finish(fig, out)


def finish(fig, out: Path) -> None:
    """Writes the figure, whole or not at all."""
    temporary = out.with_suffix(".tmp.png")
    fig.savefig(temporary, dpi=120)
    plt.close(fig)
    temporary.replace(out)
