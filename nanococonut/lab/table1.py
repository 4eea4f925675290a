"""Reproduces the paper's Table 1: trains each row with several seeds, and measures it on test.

A row is a method, and may have options of its own: --methods="cot,cot --grow=0" is an ablation of
--grow. Each run is a separate process. An interrupted run is resumed; a finished run, which has a
test.json, is not repeated.
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

from nanococonut import batching, cli, data, evaluate, files, log, opening, runs, writer
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.curriculum import METHODS

# [Hao24 Table 1]: accuracy in % (± where printed) and newly generated tokens, for three tasks.
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


STANDS_FOR = {"arithmetic": "gsm8k"}  # other problems in the same form


def paper(task: str) -> dict[str, list[str]]:
    """method -> accuracy and tokens as the paper prints them.

    prosqa-small has those of prosqa, and arithmetic those of GSM8k, which it stands for.

    >>> paper("prosqa-small")["coconut"], paper("arithmetic")["cot"], paper("mine")
    (['97.0±0.3', '14.2'], ['42.9±0.2', '25.0'], {})
    """
    tasks, *rows = [line.split() for line in PAPER.strip().splitlines()]
    name = task.partition("-")[0]
    name = STANDS_FOR.get(name, name)
    if name not in tasks:
        return {}
    column = 1 + 2 * tasks.index(name)  # the first is the method's
    return {row[0]: row[column : column + 2] for row in rows}


@dataclass(frozen=True)
class Table1Config:
    """python -m nanococonut.table1 [PRESET] [--option=value ...]: trains and measures Table 1."""

    # preset of train.py
    preset: str = "laptop"
    # data set data/<task>/; default: the preset's
    task: str = ""
    # prefix of the names of the table and its runs
    name: str = "table1"
    # rows, separated by commas; a method may be followed by options of its own
    methods: str = ",".join(METHODS)
    # random seeds; each row is trained once with each seed
    seeds: tuple[int, ...] = (0, 1, 2)
    # runs trained in parallel; with more than one, each uses a single CPU thread
    jobs: int = 1
    # additional options for train.py, separated by spaces; quote one that has a space
    options: str = ""


def planned(c: Table1Config) -> dict[TrainConfig, str]:
    """The runs of a table, each with its label. Raises UserError.

    All rows of one seed come before the next, so that a first table is complete early.
    """
    label_of = {}
    for seed in c.seeds:
        for label in c.methods.split(","):
            label = " ".join(label.split())
            label_of[training_run(c, label, seed)] = label
    return label_of


def training_run(c: Table1Config, label: str, seed: int) -> TrainConfig:
    """The settings of one run: the preset's, its row's, and those for all rows."""
    method, *options = shlex.split(label) or [""]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", f"{c.name} {c.task} {c.preset} {label} {seed}")
    words = [c.preset, f"--task={c.task}", f"--method={method}", f"--seed={seed}", f"--name={name}"]
    words += options
    words += shlex.split(c.options)
    return cli.parse(TrainConfig, words, PRESETS, CHOICES)


def training_of(run: TrainConfig, dataset: data.Dataset) -> tuple:
    """What a run trains on, whatever its row is called; the same for two runs if they are one."""
    schedule = batching.Schedule(run, dataset.meta["longest"])
    stages = []
    for stage, n_steps in enumerate(schedule.n_steps):
        plan = schedule.plan(stage, progress=0.5)
        if not plan.in_place:
            # To remove more steps than there are is to remove all. In place it matters which.
            plan = plan._replace(n_removed=min(plan.n_removed, dataset.meta["max_steps"]))
        if n_steps:
            stages.append((n_steps, plan))
    return replace(run, method="cot", name=""), tuple(stages)


def distinct(label_of: dict[TrainConfig, str], dataset: data.Dataset) -> dict[TrainConfig, str]:
    """The runs without those that would repeat another one.

    Says which, and how to tell them apart.
    """
    known = {}  # what is trained on -> the label of the first run that does
    kept = {}
    for run, label in label_of.items():
        first_label = known.setdefault(training_of(run, dataset), label)
        if first_label == label:
            kept[run] = label
        else:
            same = f"{label}, seed {run.seed}, is the same training as {first_label}"
            advice = "stages with steps tell them apart, like --options=--stage_steps=500"
            print(f"{same} and is left out; {advice}")
    return kept


def run_folder(run: TrainConfig) -> Path:
    """The folder of a run."""
    return Path("runs") / run.name


def start(run: TrainConfig, jobs: int) -> subprocess.Popen:
    """Starts train.py in a separate process, for a new or an interrupted run.

    Its output goes to runs/<name>.log.
    """
    folder = run_folder(run)
    folder.parent.mkdir(exist_ok=True)
    settings = asdict(run) | {"resume": (folder / "config.json").exists()}
    train = Path(__file__).parents[2] / "train.py"  # this project's, wherever one stands
    command = [sys.executable, "-u", str(train)]
    for key, value in settings.items():
        command.append(f"--{key}={cli.written(value)}")
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"
    with open(f"{folder}.log", "ab") as file:
        pipes = dict(stdout=file, stderr=file)
        # In a session of its own: a Ctrl-C is for this process, which stops the runs.
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def train_all(c: Table1Config, label_of: dict[TrainConfig, str], done: list[TrainConfig]) -> None:
    """Trains the runs that are not done, and writes the table after each. Raises UserError.

    After an error or a signal, the runs in progress save and stop.
    """
    waiting = [run for run in label_of if run not in done]
    running = {}  # run -> its process
    try:
        while waiting or running:
            while waiting and len(running) < c.jobs:
                run = waiting.pop(0)
                running[run] = start(run, c.jobs)
            time.sleep(0.2)
            ended = [run for run, process in running.items() if process.poll() is not None]
            for run in ended:
                process = running.pop(run)
                name = f"{label_of[run]}, seed {run.seed}"
                if process.returncode:
                    raise cli.UserError(f"{name} did not finish, {last_words(run)}")
                done.append(run)
                accuracy = measured(label_of[run], run)["accuracy"]
                print(f"[{len(done)}/{len(label_of)}] {name}: {accuracy:.1%} of test right")
                results = [measured(label, run) for run, label in label_of.items() if run in done]
                write_results(c, results)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def last_words(run: TrainConfig) -> str:
    """Where a run's output is, and its last line."""
    path = Path(f"{run_folder(run)}.log")
    last = path.read_text(encoding="utf-8").strip().splitlines()[-1:]
    return f"see {path}: {''.join(last)}"


def measured(label: str, run: TrainConfig) -> dict:
    """The results of a finished run on test.

    They are measured once, then read from its test.json.
    """
    path = run_folder(run) / "test.json"
    if not path.exists():
        trained = runs.Run(run.name)
        result, _ = evaluate.measure(trained, trained.split("test"))
        entries = log.read(path.with_name("log.csv"))["train", "seconds"]
        _, _, seconds = entries[-1]
        row = dict(method=label, seed=run.seed, seconds=seconds, **result)
        files.write_text(path, json.dumps(row) + "\n")
    return files.read_json(path)


def percent(shares: list[float]) -> str:
    """Mean ± standard deviation of shares, in %.

    >>> percent([0.5, 0.75])
    '62.5±17.7'
    """
    spread = statistics.stdev(shares) if len(shares) > 1 else 0
    return f"{100 * statistics.mean(shares):.1f}±{100 * spread:.1f}"


def cells_of(method: str, rows: list[dict], theirs: list[str]) -> list[str]:
    """The cells of a method's line: means over the rows of its seeds, and the paper's figures."""
    pairs = [row["both"] for row in rows if "both" in row]
    tokens = statistics.mean(row["tokens"] for row in rows)
    seconds = statistics.mean(row["seconds"] for row in rows)
    return [
        method,
        percent([row["accuracy"] for row in rows]),
        percent(pairs) if pairs else "-",
        str(len(rows)),
        f"{tokens:.1f}",
        f"{seconds:.0f}",
        *theirs,
    ]


def write_results(c: Table1Config, rows: list[dict]) -> str:
    """Writes results/; returns the table.

    It holds mean ± standard deviation over seeds, the paper's figures, and the baselines.
    """
    test = data.Dataset(c.task).split("test").rows
    baselines = evaluate.rules([(row,) for row in test])
    baselines_both = evaluate.rules(evaluate.twins(test))
    theirs = paper(c.task)
    header = "method | accuracy, % | both right, % | seeds | tokens | seconds"
    of_paper = "paper: accuracy"
    if c.task.partition("-")[0] in STANDS_FOR:
        of_paper = "paper, GSM8k: accuracy"
    lines = [f"| {header} | {of_paper} | tokens |", "|---" * 8 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        cells = cells_of(method, of_method, theirs.get(method, ["-", "-"]))
        lines.append(f"| {' | '.join(cells)} |")
    for rule, share in baselines.items():
        both = f"{100 * baselines_both[rule]:.1f}" if rule in baselines_both else "-"
        lines.append(f"| *{rule}* | {100 * share:.1f} | {both} | - | - | - | - | - |")
    table = "\n".join(lines) + "\n"
    found = dict(n=len(test), baselines=baselines, baselines_both=baselines_both, rows=rows)
    stem = Path("results") / f"{c.name}-{c.task}-{c.preset}"
    files.write_text(stem.with_suffix(".json"), json.dumps(asdict(c) | found, indent=1) + "\n")
    files.write_text(stem.with_suffix(".md"), table)
    return table


def main(c: Table1Config) -> None:
    """Trains what is missing, and prints the table."""
    cli.demand(c, "jobs", lambda n: n >= 1, "at least 1")
    c = replace(c, task=c.task or PRESETS[c.preset]["task"])
    dataset = data.Dataset(c.task)
    label_of = distinct(planned(c), dataset)
    done = [run for run in label_of if (run_folder(run) / "test.json").exists()]
    for run in done:
        opening.load_same(run_folder(run) / "best.pt", run, dataset)
    print(f"{len(label_of)} runs of {c.task} with preset {c.preset}: {len(done)} are finished")
    train_all(c, label_of, done)
    print(write_results(c, [measured(label, run) for run, label in label_of.items()]), end="")


def stop(number: int, _) -> None:
    """Ends this program, and so the runs, on a signal other than Ctrl-C as on Ctrl-C."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in writer.STOPS - {signal.SIGINT}:
        signal.signal(number, stop)
    cli.run(main, Table1Config, choices={"preset": tuple(PRESETS)})
