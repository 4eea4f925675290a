"""Reads and writes a run's log.csv: `step,stage,split,metric,value`, one number per line."""

import csv
import re
from collections import defaultdict
from pathlib import Path

from nanococonut import files

HEADER = "step,stage,split,metric,value\n"
LINE = re.compile(r"(\d{1,9}),\d{1,9},\w+,\w+,-?[\d.]+(e[-+]\d+)?\n")


def append(path: Path, step: int, stage: int, split: str, metrics: dict[str, float]) -> None:
    """Appends one line per metric to a log.csv that cut() has made."""
    with open(path, "a", encoding="utf-8") as file:
        for metric, value in metrics.items():
            file.write(f"{step},{stage},{split},{metric},{value:.6g}\n")


def whole_lines(path: Path) -> list[re.Match]:
    """The lines of a log.csv, if there is one, that are not damaged; group 1 is the step."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [match for match in map(LINE.fullmatch, lines) if match]


def cut(path: Path, step: int) -> None:
    """Makes log.csv, or removes its damaged lines and those after a step.

    A resumed run writes the steps after its checkpoint again.
    """
    kept = [match[0] for match in whole_lines(path) if int(match[1]) <= step]
    files.write_text(path, HEADER + "".join(kept))


def last_step(path: Path) -> int:
    """The last step in a log.csv; 0 if there is none."""
    return max((int(match[1]) for match in whole_lines(path)), default=0)


def read(path: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """Reads log.csv: (split, metric) -> [(step, stage, value)]."""
    series = defaultdict(list)
    for row in csv.DictReader(files.read_text(path).splitlines()):
        point = int(row["step"]), int(row["stage"]), float(row["value"])
        series[row["split"], row["metric"]].append(point)
    return series
