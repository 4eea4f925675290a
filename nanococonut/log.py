"""Reads and writes a run's log.csv (`step,stage,split,metric,value`, one number per line), and draws curves."""

import csv
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
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, "black")


def append(path: Path, step: int, stage: int, split: str, metrics: dict[str, float]) -> None:
    """Appends one line per metric to a log.csv that cut() has made."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(f"{step},{stage},{split},{metric},{value:.6g}\n" for metric, value in metrics.items())


def whole_lines(path: Path) -> list[re.Match]:
    """The lines of a log.csv, if there is one, that are not damaged."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    return [match for match in map(LINE.fullmatch, lines) if match]


def cut(path: Path, step: int) -> None:
    """Makes log.csv, or removes its damaged lines and the lines after a step, which a resumed run writes again."""
    data.write_text(path, HEADER + "".join(match[0] for match in whole_lines(path) if int(match[1]) <= step))


def last_step(path: Path) -> int:
    """The last step in a log.csv; 0 if there is none."""
    return max((int(match[1]) for match in whole_lines(path)), default=0)


def read(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """Reads log.csv: (split, metric) -> [(step, stage, value)]."""
    series = defaultdict(list)
    for row in csv.DictReader(reading.read_text(path).splitlines()):
        series[row["split"], row["metric"]].append((int(row["step"]), int(row["stage"]), float(row["value"])))
    return series


def lines(panels: list[tuple[str, str, dict]], out: Path) -> None:
    """Saves a panel per (x label, y label, {label: [(x, y) or (x, y, low, high)]}), and one legend for all of them."""
    width = min(2 + len(panels) % 2, len(panels))
    height = -(-len(panels) // width)
    fig, known, handles = Figure(figsize=(7.5, 3 * height + 0.5)), {}, {}
    for axes, (xlabel, ylabel, curves) in zip(fig.subplots(height, width, squeeze=False).flat, panels, strict=True):
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for label, points in curves.items():
            i = known.setdefault(label, len(known)) % len(COLOURS)
            x, y, *band = zip(*points, strict=True) if points else ((), ())
            marker = "osD^vPX*"[i] if len(x) < 20 else None
            axes.plot(x, y, color=COLOURS[i], label=label, linewidth=1.3, marker=marker, markersize=4)
            axes.fill_between(x, *(band or (y, y)), color=COLOURS[i], alpha=0.12, lw=0)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    fits = max(1, min(5, 120 // (6 + max(map(len, known), default=0))))  # labels per line of the legend
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=fits, fontsize=8)
    data.write_atomically(out, fig.savefig)


def curves(series: dict[tuple[str, str], list[tuple[int, int, float]]], out: Path) -> None:
    """Saves the losses, the accuracy on valid and the stage over the steps of a run; series as from log.read()."""
    found = {name: [(step, value) for step, _, value in points] for (_, name), points in series.items()}
    found["stage"] = [(step, stage) for step, stage, _ in series["train", "loss"]]
    panels = [("loss (nats)", ["loss", "next_word_loss"]), ("accuracy on valid", ["accuracy"]), ("stage", ["stage"])]
    lines([("optimizer step", y, {name: found[name] for name in names if name in found}) for y, names in panels], out)
