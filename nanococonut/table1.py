"""Table 1 of the paper, every row, several seeds: trains what is missing, measures it on test, writes one table.

    results/table1-<task>-<preset>.{json,md,png}       runs/table1-<task>-<preset>-<method>-<seed>/

Each run is a process of its own; one that was interrupted goes on, a finished one, with its test.json, is not repeated.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nanococonut import config, data, evaluate, plots, runs
from nanococonut.config import CHOICES, PRESETS, TrainConfig, UserError, written
from nanococonut.curriculum import METHODS

# [Hao24 Table 1]: accuracy in %, +- where printed, newly generated tokens, on each of the three tasks.
PAPER = """
                  gsm8k           prontoqa         prosqa
cot               42.9 0.2 25.0   98.8  0.8 92.5   77.5 1.9 49.4
no_cot            16.5 0.5  2.2   93.8  0.7  3.0   76.7 1.0  8.2
icot              30.0 -    2.2   99.8  0.3  3.0   98.2 0.3  8.2
pause             16.4 1.8  2.2   77.7 21.0  3.0   75.9 0.7  8.2
coconut           34.1 1.5  8.2   99.8  0.2  9.0   97.0 0.3 14.2
no_curriculum     14.4 0.8  8.2   52.4  0.4  9.0   76.1 0.2 14.2
no_thought        21.6 0.5  2.3   99.9  0.1  3.0   95.5 1.1  8.2
pause_as_thought  24.1 0.7  2.2  100.0  0.1  3.0   96.6 0.8  8.2
"""


def paper(task: str) -> dict[str, tuple[str, str, str]]:
    """method -> accuracy, +-, tokens as the paper prints them for a task; of prosqa-small those of prosqa.

    >>> paper("prosqa-small")["coconut"], paper("other")
    (('97.0', '0.3', '14.2'), {})
    """
    tasks, *rows = (line.split() for line in PAPER.strip().splitlines())
    name = task.partition("-")[0]
    at = 1 + 3 * tasks.index(name) if name in tasks else None
    return {row[0]: tuple(row[at : at + 3]) for row in rows} if at else {}


@dataclass(frozen=True)
class Table1Config:
    """python -m nanococonut.table1 [PRESET] [--option=value ...]: trains and measures every row of Table 1."""

    preset: str = "laptop"  # train.py's settings
    task: str = ""  # data/<task>/; default: prosqa-small for laptop, else prosqa
    methods: str = ",".join(METHODS)  # rows, separated by commas
    seeds: tuple[int, ...] = (0, 1, 2)  # one run a row and seed
    jobs: int = 1  # runs trained at once; on a CPU each takes one thread where there are several
    options: str = ""  # more options for train.py, separated by blanks


def folder_of(c: Table1Config, task: str, method: str, seed: int) -> Path:
    return Path("runs") / f"table1-{task}-{c.preset}-{method}-{seed}"


def words_of(c: Table1Config, task: str, method: str, seed: int) -> list[str]:
    """What train.py is told about a row."""
    name = folder_of(c, task, method, seed).name
    return [c.preset, f"--task={task}", f"--method={method}", f"--seed={seed}", f"--name={name}", *c.options.split()]


def start(c: Table1Config, task: str, method: str, seed: int) -> subprocess.Popen:
    """train.py in a process of its own, on a new run or an interrupted one; its words go to runs/<name>.log."""
    folder = folder_of(c, task, method, seed)
    resume = (folder / "config.json").exists()
    if folder.exists() and not resume:
        folder.rmdir()  # made, and nothing written
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # the last line of its log is then the last it said
    environment |= {"OMP_NUM_THREADS": "1"} if c.jobs > 1 else {}
    folder.parent.mkdir(exist_ok=True)
    command = [sys.executable, "train.py", *words_of(c, task, method, seed), f"--resume={written(resume)}"]
    with open(f"{folder}.log", "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def measured(c: Table1Config, task: str, method: str, seed: int) -> dict:
    """The figures of a finished run on test; measured once, then read from its test.json."""
    folder = folder_of(c, task, method, seed)
    if (folder / "test.json").exists():
        return data.read_json(folder / "test.json")
    run = evaluate.Run(str(folder))
    result, _ = evaluate.measure(run, run.split("test"), run.plan)
    seconds = plots.read_log(folder / "log.csv")["train", "seconds"][-1][2]
    kept = {"method": method, "seed": seed, "seconds": seconds, **result}
    data.write_text(folder / "test.json", json.dumps(kept) + "\n")
    return kept


def is_finished(c: Table1Config, task: str, method: str, seed: int) -> bool:
    """Whether a row is measured already. Raises UserError where that was with other options or on other data."""
    folder = folder_of(c, task, method, seed)
    if not (folder / "test.json").exists():
        return False  # train.py itself refuses to go on with another run
    asked = config.parse(TrainConfig, words_of(c, task, method, seed), PRESETS, CHOICES)
    runs.demand_settings(folder, asked, asked.schedule)
    data.Dataset(task).demand_unchanged(str(folder), runs.load_state(folder / "best.pt")["data"]["sha256"])
    return True


def table(rows: list[dict], task: str, baselines: dict[str, float]) -> str:
    """The table in Markdown: accuracy mean +- standard deviation over seeds, tokens, seconds, the paper's beside."""
    lines = ["| method | accuracy, % | seeds | tokens | seconds | paper: accuracy, % | tokens |", "|---" * 7 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        shares = [100 * row["accuracy"] for row in mine]
        accuracy, deviation = statistics.mean(shares), statistics.stdev(shares) if len(shares) > 1 else 0.0
        there, plus_minus, tokens = paper(task).get(method, ("-", "-", "-"))
        theirs = there if plus_minus == "-" else f"{there} ± {plus_minus}"
        written_tokens, seconds = (statistics.mean(row[key] for row in mine) for key in ("tokens", "seconds"))
        own = f"{accuracy:.1f} ± {deviation:.1f} | {len(mine)} | {written_tokens:.1f} | {seconds:.0f}"
        lines += [f"| {method} | {own} | {theirs} | {tokens} |"]
    lines += [f"| *{rule}* | {100 * share:.1f} | - | - | - | - | - |" for rule, share in baselines.items()]
    return "\n".join(lines) + "\n"


def write_results(c: Table1Config, task: str, todo: list[tuple[str, int]]) -> str:
    """Writes results/ from the runs that are finished and returns the table."""
    rows = [measured(c, task, method, seed) for method, seed in todo]
    test = data.Dataset(task).split("test").rows
    baselines = evaluate.baselines(test)
    text = table(rows, task, baselines)
    stem = Path("results") / f"table1-{task}-{c.preset}"
    stem.parent.mkdir(exist_ok=True)
    kept = dict(task=task, preset=c.preset, options=c.options, n=len(test), baselines=baselines, rows=rows)
    data.write_text(stem.with_suffix(".json"), json.dumps(kept, indent=1) + "\n")
    data.write_text(stem.with_suffix(".md"), text)
    theirs = {method: float(row[0]) for method, row in paper(task).items()}
    plots.table1(rows, theirs, baselines, stem.with_suffix(".png"))
    return text


def main(c: Table1Config) -> None:
    methods = c.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        raise UserError(f"unknown method {unknown[0]!r}, choose from {', '.join(METHODS)}")
    config.demand(c, "jobs", lambda n: n >= 1, "at least 1")
    task = c.task or ("prosqa-small" if c.preset == "laptop" else "prosqa")
    data.Dataset(task)  # a missing one is named before any work
    todo = [(method, seed) for seed in c.seeds for method in methods]  # a whole table for each seed first
    done = [pair for pair in todo if is_finished(c, task, *pair)]
    waiting, running = [pair for pair in todo if pair not in done], {}
    print(f"{len(todo)} runs of {task} with preset {c.preset}: {len(done)} are finished")
    began, n_before = time.time(), len(done)
    try:
        while waiting or running:
            while waiting and len(running) < c.jobs:
                pair = waiting.pop(0)
                running[pair] = start(c, task, *pair)
            time.sleep(0.2)
            for pair in [pair for pair, process in running.items() if process.poll() is not None]:
                log = f"{folder_of(c, task, *pair)}.log"
                if running.pop(pair).returncode:
                    last = Path(log).read_text(encoding="utf-8").strip().splitlines()[-1:]
                    raise UserError(f"{pair[0]}, seed {pair[1]} did not finish, see {log}: {''.join(last)}")
                done.append(pair)
                left = (time.time() - began) / (len(done) - n_before) * (len(todo) - len(done)) / 60
                result = measured(c, task, *pair)
                found = f"{result['accuracy']:.1%} of test right, {result['seconds']:.0f} s"
                print(f"[{len(done)}/{len(todo)}] {pair[0]}, seed {pair[1]}: {found}; about {left:.0f} min left")
                write_results(c, task, [pair for pair in todo if pair in done])
    finally:  # an error or Ctrl-C: the others save and end
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    print(write_results(c, task, todo), end="")


if __name__ == "__main__":
    config.run(main, Table1Config, choices={"preset": tuple(PRESETS)})
