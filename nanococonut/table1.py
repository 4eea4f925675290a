"""Reproduces the paper's Table 1: trains each row with several seeds, measures it on test, and writes one table.

A row is a method, and may have options of its own: --methods="cot,cot --grow=0" is an ablation of --grow. Each run is a
separate process. An interrupted run is resumed; a finished run, which has a test.json, is not repeated.
"""

import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nanococonut import answers, batching, config, data, evaluate, log, runs
from nanococonut.curriculum import METHODS
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

# [Hao24 Table 1]: accuracy in % (± where printed) and newly generated tokens, for each of the three tasks.
PAPER = """
                   gsm8k          prontoqa         prosqa
cot                42.9±0.2 25.0   98.8±0.8  92.5  77.5±1.9 49.4
no_cot             16.5±0.5  2.2   93.8±0.7   3.0  76.7±1.0  8.2
icot               30.0      2.2   99.8±0.3   3.0  98.2±0.3  8.2
pause              16.4±1.8  2.2   77.7±21.0  3.0  75.9±0.7  8.2
coconut            34.1±1.5  8.2   99.8±0.2   9.0  97.0±0.3 14.2
no_curriculum      14.4±0.8  8.2   52.4±0.4   9.0  76.1±0.2 14.2
no_thought         21.6±0.5  2.3   99.9±0.1   3.0  95.5±1.1  8.2
pause_as_thought   24.1±0.7  2.2  100.0±0.1   3.0  96.6±0.8  8.2
"""


def paper(task: str) -> dict[str, list[str]]:
    """method -> accuracy and tokens as the paper prints them for a task; prosqa-small gets those of prosqa."""
    tasks, *rows = (line.split() for line in PAPER.strip().splitlines())
    at = [2 * i + 1 for i, name in enumerate(tasks) if name == task.partition("-")[0]]
    return {row[0]: row[i : i + 2] for i in at for row in rows}


@dataclass(frozen=True)
class Table1Config:
    """python -m nanococonut.table1 [PRESET] [--option=value ...]: trains and measures every row of Table 1."""

    preset: str = "laptop"  # preset of train.py
    task: str = ""  # data set data/<task>/; default: the preset's
    name: str = "table1"  # prefix of the names of the table and its runs
    methods: str = ",".join(METHODS)  # rows, separated by commas; a method may be followed by options of its own
    seeds: tuple[int, ...] = (0, 1, 2)  # random seeds; each row is trained once with each seed
    jobs: int = 1  # runs trained in parallel; with more than one, each uses a single CPU thread
    options: str = ""  # additional options for train.py, separated by spaces; quote one that has a space


def training_of(row: TrainConfig, dataset: data.Dataset) -> tuple:
    """What a run trains on, whatever its row is called: two rows with the same would be the same run twice."""
    schedule, most = batching.Schedule(row, dataset.meta["longest"]), dataset.meta["max_steps"]
    stages = []
    for stage, n_steps in enumerate(schedule.n_steps):
        plan = schedule.plan(stage, progress=0.5)
        if not plan.in_place:  # in place it matters which steps are gone; else the whole chain is gone, or it is not
            plan = plan._replace(n_removed=min(plan.n_removed, most))
        if n_steps:
            stages.append((n_steps, plan))
    return replace(row, method="cot", name=""), tuple(stages)


def distinct(todo: dict[TrainConfig, str], dataset: data.Dataset) -> dict[TrainConfig, str]:
    """The runs without those that would repeat another one; says which, and how to tell them apart."""
    known, kept = {}, {}
    for row, label in todo.items():
        same = known.setdefault(training_of(row, dataset), label)
        if same == label:
            kept[row] = label
        else:
            advice = "stages with steps tell them apart, like --options=--stage_steps=500"
            print(f"{label}, seed {row.seed}, is the same training as {same} and is left out; {advice}")
    return kept


def start(row: TrainConfig, jobs: int) -> subprocess.Popen:
    """Starts train.py in a separate process, for a new or an interrupted run; its output goes to runs/<name>.log."""
    folder = Path("runs") / row.name
    folder.parent.mkdir(exist_ok=True)
    settings = asdict(row) | {"resume": (folder / "config.json").exists()}
    train = Path(__file__).parents[1] / "train.py"  # this project's, wherever one stands
    command = [sys.executable, "-u", str(train), *(f"--{key}={config.written(x)}" for key, x in settings.items())]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    with open(f"{folder}.log", "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def measured(label: str, row: TrainConfig) -> dict:
    """The results of a finished run on test. They are measured once, then read from its test.json."""
    path = Path("runs") / row.name / "test.json"
    if not path.exists():
        run = answers.Run(row.name)
        result, _ = evaluate.measure(run, run.split("test"))
        *_, (_, _, seconds) = log.read(path.with_name("log.csv"))["train", "seconds"]
        data.write_text(path, json.dumps(dict(method=label, seed=row.seed, seconds=seconds, **result)) + "\n")
    return data.read_json(path)


def percent(shares: list[float]) -> str:
    """Mean ± standard deviation of shares, in %."""
    spread = statistics.stdev(shares) if len(shares) > 1 else 0
    return f"{100 * statistics.mean(shares):.1f}±{100 * spread:.1f}"


def write_results(c: Table1Config, rows: list[dict]) -> str:
    """Writes results/; returns the table: mean ± standard deviation over seeds, the paper's figures, the baselines."""
    test, theirs = data.Dataset(c.task).split("test").rows, paper(c.task)
    baselines, both = evaluate.rules([(row,) for row in test]), evaluate.rules(evaluate.twins(test))
    lines = ["| method | accuracy, % | both right, % | seeds | tokens | seconds | paper: accuracy | tokens |"]
    lines.append("|---" * 8 + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        pairs = [row["both"] for row in mine if "both" in row]
        cells = [method, percent([row["accuracy"] for row in mine]), percent(pairs) if pairs else "-", str(len(mine))]
        tokens, seconds = (statistics.mean(row[what] for row in mine) for what in ("tokens", "seconds"))
        cells += [f"{tokens:.1f}", f"{seconds:.0f}", *theirs.get(method, ["-", "-"])]
        lines.append(f"| {' | '.join(cells)} |")
    for rule, share in baselines.items():
        pair = f"{100 * both[rule]:.1f}" if rule in both else "-"
        lines.append(f"| *{rule}* | {100 * share:.1f} | {pair} | - | - | - | - | - |")
    text, stem = "\n".join(lines) + "\n", Path("results") / f"{c.name}-{c.task}-{c.preset}"
    kept = asdict(c) | dict(n=len(test), baselines=baselines, baselines_both=both, rows=rows)
    data.write_text(stem.with_suffix(".json"), json.dumps(kept, indent=1) + "\n")
    data.write_text(stem.with_suffix(".md"), text)
    return text


def main(c: Table1Config) -> None:
    config.demand(c, "jobs", lambda n: n >= 1, "at least 1")
    c = replace(c, task=c.task or PRESETS[c.preset]["task"])
    dataset, todo = data.Dataset(c.task), {}  # todo: the TrainConfig of each run -> its label
    for seed in c.seeds:  # one seed after the other, so that a first table is complete early
        for label in c.methods.split(","):
            label = " ".join(label.split())
            method, *options = shlex.split(label) or [""]
            name = re.sub(r"[^A-Za-z0-9._]+", "-", f"{c.name} {c.task} {c.preset} {label} {seed}")
            words = [f"--task={c.task}", f"--method={method}", f"--seed={seed}", f"--name={name}", *options]
            todo[config.parse(TrainConfig, [c.preset, *words, *shlex.split(c.options)], PRESETS, CHOICES)] = label
    todo = distinct(todo, dataset)
    done = [row for row in todo if (Path("runs") / row.name / "test.json").exists()]
    for row in done:
        runs.load_same(Path("runs") / row.name / "best.pt", row, dataset)
    waiting, running = [row for row in todo if row not in done], {}
    print(f"{len(todo)} runs of {c.task} with preset {c.preset}: {len(done)} are finished")
    try:
        while waiting or running:
            while waiting and len(running) < c.jobs:
                row = waiting.pop(0)
                running[row] = start(row, c.jobs)
            time.sleep(0.2)
            for row in [row for row, process in running.items() if process.poll() is not None]:
                about = f"{todo[row]}, seed {row.seed}"
                if running.pop(row).returncode:
                    said = Path(f"runs/{row.name}.log")
                    last = said.read_text(encoding="utf-8").strip().splitlines()[-1:]
                    raise config.UserError(f"{about} did not finish, see {said}: {''.join(last)}")
                done.append(row)
                print(f"[{len(done)}/{len(todo)}] {about}: {measured(todo[row], row)['accuracy']:.1%} of test right")
                write_results(c, [measured(label, row) for row, label in todo.items() if row in done])
    finally:  # after an error or a signal, the other runs save and stop
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    print(write_results(c, [measured(label, row) for row, label in todo.items()]), end="")


if __name__ == "__main__":
    for stop in runs.STOPS - {signal.SIGINT}:
        signal.signal(stop, lambda number, _: sys.exit(128 + number))  # stops the runs, as Ctrl-C does
    config.run(main, Table1Config, choices={"preset": tuple(PRESETS)})
