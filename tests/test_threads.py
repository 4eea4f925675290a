"""CPU threads: fewer where others need the cores, the same after resuming, or as the user sets."""

import ast
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import prepare
import train
from nanococonut import cli, device
from nanococonut.config import CHOICES, PRESETS, TrainConfig

ROOT = Path(__file__).parents[1]
SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


@pytest.fixture
def free(monkeypatch):
    """No number of threads is set by the user; afterwards it is as before."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    yield
    torch.set_num_threads(before)


class Work:
    """Work that takes the seconds given for each number of threads, on a clock of its own."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.now, self.n_threads, self.n_calls = seconds, 0.0, max(seconds), 0
        monkeypatch.setattr(torch, "get_num_threads", lambda: max(seconds))
        monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(self, "n_threads", n))
        monkeypatch.setattr(device.timeit, "timeit", self.time)

    def time(self, work, number):
        before = self.now
        for _ in range(number):
            work()
        return self.now - before

    def __call__(self):
        self.now += self.seconds[self.n_threads]
        self.n_calls += 1


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ({1: 0.11, 2: 0.08}, 2),
        # over two seconds: a model so large that fewer threads are not tried
        ({1: 0.11, 2: 7.0}, 2),
        ({1: 0.11, 2: 0.5}, 1),  # another process runs
        ({1: 0.11, 2: 0.06, 4: 0.05, 6: 0.2}, 4),
    ],
)
def test_the_fastest_number_of_threads_is_taken(free, monkeypatch, capsys, seconds, fastest):
    work = Work(monkeypatch, seconds)
    assert device.pick("cpu").fastest_threads(work, max(seconds)) == fastest
    if max(seconds.values()) < 2:
        assert f"{fastest}: {seconds[fastest]:.3f}" in capsys.readouterr().out
        n_hopeless = sum(s > 2 * min(seconds.values()) for s in list(seconds.values())[1:])
        assert work.n_calls == 1 + 5 * len(seconds) - 4 * n_hopeless
    else:
        assert work.n_calls == 1


def test_what_the_user_sets_is_kept(monkeypatch):
    work = Work(monkeypatch, {1: 0.1, 2: 0.2})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert device.pick("cpu").fastest_threads(work, 2) == 2
    assert work.n_calls == 0


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "8000"), ({SPIN: "7"}, "7"), ({POLICY: "passive"}, ""), ({POLICY: "active"}, "")],
)
def test_how_threads_wait(given, spins):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in (SPIN, POLICY):
        environment.pop(name, None)
    environment.update(given)
    code = f"import os, nanococonut; print(os.environ.get('{SPIN}', ''))"
    command = [sys.executable, "-c", code]
    out = subprocess.check_output(command, env=environment, text=True)
    assert out.strip() == spins


@pytest.mark.parametrize("script", ["train.py", "sample.py", "prepare.py"])
def test_scripts_import_the_package_before_torch(script):
    modules = []  # in the order in which they are imported
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module.partition(".")[0])
        if isinstance(node, ast.Import):
            modules += [alias.name.partition(".")[0] for alias in node.names]
    assert "nanococonut" in modules
    assert "torch" not in modules[: modules.index("nanococonut")]


def trained(*words):
    train.main(cli.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def test_a_run_stores_its_threads_and_resumes_with_them(free, workspace, monkeypatch):
    prepare.main(
        prepare.PrepareConfig(train=20, valid=4, test=4, n_nodes=8, min_hops=2, max_hops=3)
    )
    words = ["--dropout=0.1", "--max_stage=0"]

    def threads(name):
        """The number that a run stores, which is the one in use."""
        stored = json.loads(Path(f"runs/{name}/config.json").read_text())["threads"]
        assert stored == torch.get_num_threads()
        return stored

    with monkeypatch.context() as here:
        here.setattr(
            device.Machine, "fastest_threads", lambda self, work, most: work() is None or 1
        )
        trained("--name=tried", *words)
    assert threads("tried") == 1

    def refuse(*_):
        pytest.fail("the run has its number")

    # From here on nothing may be tried.
    monkeypatch.setattr(device.Machine, "timed_threads", refuse)
    with monkeypatch.context() as here:
        here.setenv("OMP_NUM_THREADS", "1")
        trained("--name=set", *words)
    assert threads("set") == 1
    tried, typed = (
        torch.load(f"runs/{name}/ckpt.pt", weights_only=True) for name in ("tried", "set")
    )
    for name, weight in typed["model"].items():
        assert torch.equal(tried["model"][name], weight), f"trying threads has changed {name}"

    torch.set_num_threads(2)
    with monkeypatch.context() as here:
        here.setattr(device.Machine, "fastest_threads", refuse)
        trained("--name=tried", *words, "--resume=true")
    assert threads("tried") == 1
    for n in (2, 1, 2):  # torch reads the variable when it is loaded
        torch.set_num_threads(n)
        monkeypatch.setenv("OMP_NUM_THREADS", str(n))
        trained("--name=tried", *words, "--resume=true")
        assert threads("tried") == n, "what the user sets wins"


def untouched() -> dict[str, str]:
    """The environment without what says how many threads there are, and how they wait."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    return kept | {"PYTHONPATH": str(ROOT)}


def steps_per_second(name: str, n_busy: int, **environment: str) -> float:
    """Steps per second of the quick start's training beside n_busy processes that never wait."""
    environment = untouched() | environment
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
    schedule = ["--stage_steps=0,0,0,0,0,0,120", "--grow=0", "--eval_every=0", f"--name={name}"]
    try:
        command = [sys.executable, str(ROOT / "train.py"), "laptop", *schedule]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    rows = csv.DictReader(Path(f"runs/{name}/log.csv").read_text().splitlines())
    seconds = {int(row["step"]): float(row["value"]) for row in rows if row["metric"] == "seconds"}
    return (120 - 20) / (seconds[120] - seconds[20])


class Steps:
    """A clock, and steps that take the seconds given for each number of threads.

    A load is another such table.
    """

    QUIET, BUSY = {1: 0.09, 2: 0.06}, {1: 0.1, 2: 0.9}

    def __init__(self):
        self.now, self.threads, self.tries = 0.0, 2, []
        self.pace = device.Pace(clock=lambda: self.now)

    def take(self, load, seconds):
        """Steps for so many seconds; returns how many, of what one thread would have done."""
        end, n = self.now + seconds, 0
        while self.now < end:
            self.now += load[self.threads]
            n += 1
            if self.pace.is_due(has_fewer=self.threads < 2):
                spent = 5 * load[1] + (load[2] if load[2] > 2 * load[1] else 5 * load[2])
                self.now += spent
                self.tries.append(self.now)
                self.threads = min(load, key=load.get)
                self.pace.start(spent)
        return n / (seconds / load[1])


def test_threads_are_tried_again_when_steps_get_slower_and_later_once_more():
    steps = Steps()
    assert steps.take(Steps.QUIET, 300) > 1.4 and not steps.tries
    assert steps.take(Steps.BUSY, 60) > 0.8, "seconds to notice it, and no more"
    assert steps.threads == 1
    assert steps.take(Steps.QUIET, 300) > 1.2 and steps.threads == 2
    n_before = len(steps.tries)
    assert steps.take(Steps.BUSY, 600) > 0.95
    assert len(steps.tries) - n_before <= 600 / 30


def test_a_load_that_comes_and_goes_costs_little():
    steps = Steps()
    rng = random.Random(0)
    shares = []
    for _ in range(200):
        load = rng.choice([Steps.QUIET, Steps.BUSY])
        shares.append(steps.take(load, rng.uniform(5, 120)))
    assert sum(shares) / len(shares) > 0.9


def test_steps_that_differ_a_little_lead_to_no_tries():
    steps, rng = Steps(), random.Random(0)
    for i in range(5000):
        steps.now += 0.06 * rng.uniform(0.9, 1.1) + 5 * (i % 100 == 0)  # and an evaluation
        assert not steps.pace.is_due(has_fewer=False)


def test_steps_that_grow_in_a_run_lead_to_few_tries():
    steps, n_tries = Steps(), 0
    for i in range(6000):  # as measured in the quick start, where graphs grow
        steps.now += 0.06 + 0.07 * min(1.0, i / 4000)
        if steps.pace.is_due(has_fewer=False):
            n_tries += 1
            steps.pace.start(spent=1.0)
    assert n_tries <= 2


def test_a_try_that_changes_nothing_prints_nothing(free, monkeypatch, capsys):
    work = Work(monkeypatch, {1: 0.11, 2: 0.08})
    assert device.pick("cpu").timed_threads(work, 2, before=2) == 2
    assert capsys.readouterr().out == ""
    assert device.pick("cpu").timed_threads(work, 2, before=1) == 2
    assert "1: 0.110, 2: 0.080" in capsys.readouterr().out


def test_the_pace_is_kept_in_training_unless_threads_are_set(free, workspace, monkeypatch):
    prepare.main(
        prepare.PrepareConfig(train=20, valid=4, test=4, n_nodes=8, min_hops=2, max_hops=3)
    )
    words = ["--dropout=0.1", "--max_stage=0", "--stage_steps=6"]
    monkeypatch.setattr(device.Pace, "is_due", lambda self, has_fewer: not has_fewer)
    with monkeypatch.context() as here:
        here.setattr(device.Machine, "fastest_threads", lambda self, work, most: 2)
        here.setattr(device.Machine, "tries_threads", lambda self, most: True)
        here.setattr(device.Machine, "timed_threads", lambda self, work, *_: work() is None or 1)
        trained("--name=tried", *words)
    stored = json.loads(Path("runs/tried/config.json").read_text())
    assert stored["threads"] == torch.get_num_threads() == 1

    def refuse(*_):
        pytest.fail("the user has set them")

    monkeypatch.setattr(device.Machine, "timed_threads", refuse)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trained("--name=set", *words)
    tried, typed = (
        torch.load(f"runs/{name}/ckpt.pt", weights_only=True) for name in ("tried", "set")
    )
    for name, weight in typed["model"].items():
        assert torch.allclose(tried["model"][name], weight, atol=1e-5), (
            f"trying threads has changed {name}"
        )


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to share")
def test_a_busy_core_leaves_most_of_the_speed_of_one_thread(workspace):
    small = dict(name="prosqa-small", fair=True, n_nodes=16, min_hops=3, max_hops=5)
    prepare.main(prepare.PrepareConfig(train=500, valid=10, test=10, **small))
    names, n_busy = map(str, itertools.count()), (os.cpu_count() or 1) - 1
    one_thread = steps_per_second(next(names), n_busy, OMP_NUM_THREADS="1")
    assert steps_per_second(next(names), n_busy) > 0.6 * one_thread
    as_torch = dict(OMP_NUM_THREADS=str(os.cpu_count()), GOMP_SPINCOUNT="300000")
    all_threads = steps_per_second(next(names), 0, **as_torch)
    assert steps_per_second(next(names), 0) > 0.85 * all_threads


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to share")
def test_a_program_that_starts_and_stops_in_mid_run(workspace):
    """Steps in the seconds beside it, a while after it began.

    They are compared with those of one thread beside it all the time.
    """
    small = dict(name="prosqa-small", fair=True, n_nodes=16, min_hops=3, max_hops=5)
    prepare.main(prepare.PrepareConfig(train=500, valid=10, test=10, **small))
    n_busy = (os.cpu_count() or 1) - 1
    one_thread = steps_per_second("one", n_busy, OMP_NUM_THREADS="1")
    words = ["laptop", "--stage_steps=0,0,0,0,0,0,5000", "--grow=0", "--eval_every=0"]
    words += ["--name=run", "--log_every=5"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = subprocess.Popen(command, env=untouched(), **quiet)

    def n_steps():
        rows = csv.DictReader(Path("runs/run/log.csv").read_text().splitlines())
        return max(int(row["step"]) for row in rows if row["metric"] == "seconds")

    try:
        time.sleep(40)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            time.sleep(15)  # to notice it
            before = n_steps()
            time.sleep(30)
            beside = (n_steps() - before) / 30
        finally:
            for process in busy:
                process.kill()
                process.wait()
        time.sleep(45)
        before = n_steps()
        time.sleep(20)
        alone = (n_steps() - before) / 20
    finally:
        run.kill()
        run.wait()
    assert beside > 0.8 * one_thread
    assert alone > 1.1 * one_thread, "when it has gone, more threads are faster again"
