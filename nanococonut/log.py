"""Reads and writes a run's log.csv (`step,stage,split,metric,value`, one number per line), and draws curves.png."""

import csv
import math
import re
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nanococonut import data, reading

HEADER = "step,stage,split,metric,value\n"
LINE = re.compile(r"(\d{1,9}),\d{1,9},\w+,\w+,-?[\d.]+(e[-+]\d+)?\n")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette, safe for colour-blind readers
matplotlib.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 120, "legend.frameon": False})
matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "savefig.format": "png"})


def append(path: Path, step: int, stage: int, split: str, metrics: dict[str, float]) -> None:
    """Appends one line per metric to log.csv."""
    with open(path, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(HEADER)
        file.writelines(f"{step},{stage},{split},{metric},{value:.6g}\n" for metric, value in metrics.items())


def cut(path: Path, step: int) -> None:
    """Removes damaged lines, and the lines after a step, which a resumed run writes again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [match for match in map(LINE.fullmatch, lines) if match]
    data.write_text(path, HEADER + "".join(match[0] for match in whole if int(match[1]) <= step))


def read(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """Reads log.csv: (split, metric) -> [(step, stage, value)]."""
    series = defaultdict(list)
    for row in csv.DictReader(reading.read_text(path).splitlines()):
        series[row["split"], row["metric"]].append((int(row["step"]), int(row["stage"]), float(row["value"])))
    return series


def draw_curves(path: Path, out: Path) -> None:
    """Draws the training loss and, below it, the shares on valid over steps; grey lines mark where stages begin."""
    series, fig = read(path), Figure(figsize=(7.5, 5))
    top, bottom = fig.subplots(2, 1, sharex=True)
    curves = {(top, BLUE): ("train", "loss"), (bottom, BLUE): ("valid", "accuracy")}
    curves[bottom, ORANGE] = "valid", "first_step_is_fact"
    for (axes, colour), key in curves.items():
        points = [(step, value) for step, _, value in series[key]] or [(math.nan, math.nan)]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=2, linewidth=1.3, label=key[1])
    top.set(ylabel="training loss (nats per token)", yscale="log")
    bottom.set(xlabel="optimizer step", ylabel="share of valid", ylim=(0, 1.02))
    bottom.legend(loc="lower right")
    begins = {stage: step for step, stage, _ in reversed(series["train", "loss"])}  # first logged step of each stage
    for stage, step in begins.items():
        for axes in (top, bottom):
            axes.axvline(step, color=GREY, linewidth=0.6, alpha=0.6)
        top.annotate(f" {stage}", (step, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color=GREY)
    data.write_atomically(out, fig.savefig)
