"""log.csv of a run, `step,stage,split,metric,value`, one number a line; and curves.png, drawn from it."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nanococonut import data, reading

HEADER = "step,stage,split,metric,value\n"
LINE = re.compile(r"(\d{1,9}),\d{1,9},\w+,\w+,-?[\d.]+(e[-+]\d+)?\n")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette: told apart by everyone
matplotlib.rcParams.update({"figure.constrained_layout.use": True, "savefig.dpi": 120, "legend.frameon": False})
matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "savefig.format": "png"})


def append(path: Path, step: int, stage: int, split: str, metrics: dict[str, float]) -> None:
    """Appends one line for each metric."""
    with open(path, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(HEADER)
        file.writelines(f"{step},{stage},{split},{metric},{value:.6g}\n" for metric, value in metrics.items())


def cut(path: Path, step: int) -> None:
    """Removes what was written after a step, for it will be written again, and lines that are damaged."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [match for match in map(LINE.fullmatch, lines) if match]
    data.write_text(path, HEADER + "".join(match[0] for match in whole if int(match[1]) <= step))


def read(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """(split, metric) -> [(step, stage, value)]."""
    series = defaultdict(list)
    for row in csv.DictReader(reading.read_text(path).splitlines()):
        series[row["split"], row["metric"]].append((int(row["step"]), int(row["stage"]), float(row["value"])))
    return series


def draw_curves(path: Path, out: Path) -> None:
    """Training loss above, accuracy on valid below, over steps; a grey line where a stage begins."""
    series, fig = read(path), Figure(figsize=(7.5, 5))
    top, bottom = fig.subplots(2, 1, sharex=True)
    loss = series["train", "loss"]
    top.plot([step for step, _, _ in loss], [value for _, _, value in loss], color=BLUE, linewidth=1.3)
    top.set(ylabel="training loss (nats per token)", yscale="log")
    for metric, colour in (("accuracy", BLUE), ("first_step_is_fact", ORANGE)):
        points = series["valid", metric]
        if points:
            steps, _, shares = zip(*points, strict=True)
            marker = "o" if len(points) < 20 else None
            bottom.plot(steps, shares, color=colour, marker=marker, markersize=4, linewidth=1.3, label=metric)
    bottom.set(xlabel="optimizer step", ylabel="share of valid", ylim=(0, 1.02))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    if bottom.lines:
        bottom.legend(loc="lower right")
    begins = {stage: step for step, stage, _ in reversed(loss)}  # each stage's first step
    for stage, step in begins.items():
        for axes in (top, bottom):
            axes.axvline(step, color=GREY, linewidth=0.6, alpha=0.6)
        text = f" {stage}" if stage else " stage 0"
        top.annotate(text, (step, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color=GREY)
    data.write_atomically(out, fig.savefig)
