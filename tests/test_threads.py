"""CPU threads: fewer where other processes need the cores, the same after resuming, or what the user sets."""

import ast
import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prepare
import train
from nanococonut import config, devices
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

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
        monkeypatch.setattr(devices.timeit, "timeit", self.time)

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
        ({1: 0.11, 2: 7.0}, 2),  # over two seconds: a model so large that fewer threads are not tried
        ({1: 0.11, 2: 0.5}, 1),  # another process runs
        ({1: 0.11, 2: 0.06, 4: 0.05, 6: 0.2}, 4),
    ],
)
def test_the_fastest_number_of_threads_is_taken(free, monkeypatch, capsys, seconds, fastest):
    work = Work(monkeypatch, seconds)
    assert devices.pick("cpu").fastest_threads(work) == fastest
    if max(seconds.values()) < 2:
        assert f"{fastest}: {seconds[fastest]:.3f}" in capsys.readouterr().out
        assert work.n_calls == 1 + 5 * len(seconds)
    else:
        assert work.n_calls == 1


def test_what_the_user_sets_is_kept(monkeypatch):
    work = Work(monkeypatch, {1: 0.1, 2: 0.2})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert devices.pick("cpu").fastest_threads(work) == 2
    assert work.n_calls == 0


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "8000"), ({SPIN: "7"}, "7"), ({POLICY: "passive"}, ""), ({POLICY: "active"}, "")]
)
def test_how_threads_wait(given, spins):
    environment = {name: value for name, value in os.environ.items() if name not in (SPIN, POLICY)} | given
    code = f"import os, nanococonut; print(os.environ.get('{SPIN}', ''))"
    out = subprocess.check_output([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(ROOT)}, text=True)
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
    train.main(config.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def test_a_run_stores_its_threads_and_resumes_with_them(free, workspace, monkeypatch):
    prepare.main(prepare.PrepareConfig(train=20, valid=4, test=4, n_nodes=8, min_hops=2, max_hops=3))
    monkeypatch.setattr(devices.Machine, "fastest_threads", lambda self, work: work() is None or 1)
    trained("--name=tried", "--dropout=0.1", "--max_stage=0")
    stored = json.loads(Path("runs/tried/config.json").read_text())
    assert stored["threads"] == torch.get_num_threads() == 1
    monkeypatch.setattr(devices.Machine, "fastest_threads", lambda *_: pytest.fail("the run has its number"))
    trained("--name=typed", "--dropout=0.1", "--max_stage=0", "--threads=1")
    tried, typed = (torch.load(f"runs/{name}/ckpt.pt", weights_only=True) for name in ("tried", "typed"))
    for name, weight in typed["model"].items():
        assert torch.equal(tried["model"][name], weight), f"trying threads has changed {name}"
    torch.set_num_threads(2)
    trained("--name=tried", "--dropout=0.1", "--max_stage=0", "--resume=true")
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(devices.Machine, "fastest_threads", lambda *_: 2)
    trained("--name=tried", "--dropout=0.1", "--max_stage=0", "--resume=true")
    assert torch.get_num_threads() == 2, "what the user sets wins"
    trained("--name=tried", "--dropout=0.1", "--max_stage=0", "--resume=true", "--threads=1")
    assert torch.get_num_threads() == 1
    trained("--name=tried", "--dropout=0.1", "--max_stage=0", "--resume=true", "--threads=2")
    assert json.loads(Path("runs/tried/config.json").read_text())["threads"] == torch.get_num_threads() == 2


def steps_per_second(name: str, n_busy: int, *words: str, **environment: str) -> float:
    """Steps per second of the quick start's training beside n_busy processes that never wait."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    inherited |= {"PYTHONPATH": str(ROOT)} | environment
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
    schedule = ["--stage_steps=0,0,0,0,0,0,120", "--grow=0", "--eval_every=0", f"--name={name}"]
    try:
        command = [sys.executable, str(ROOT / "train.py"), "laptop", *schedule, *words]
        subprocess.run(command, env=inherited, check=True, capture_output=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    rows = csv.DictReader(Path(f"runs/{name}/log.csv").read_text().splitlines())
    seconds = {int(row["step"]): float(row["value"]) for row in rows if row["metric"] == "seconds"}
    return (120 - 20) / (seconds[120] - seconds[20])


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to share")
def test_a_busy_core_leaves_most_of_the_speed_of_one_thread(workspace):
    small = dict(name="prosqa-small", fair=True, n_nodes=16, min_hops=3, max_hops=5)
    prepare.main(prepare.PrepareConfig(train=500, valid=10, test=10, **small))
    names, n_busy = map(str, itertools.count()), (os.cpu_count() or 1) - 1
    one_thread = steps_per_second(next(names), n_busy, "--threads=1")
    assert steps_per_second(next(names), n_busy) > 0.6 * one_thread
    all_threads = steps_per_second(next(names), 0, OMP_NUM_THREADS=str(os.cpu_count()), GOMP_SPINCOUNT="300000")
    assert steps_per_second(next(names), 0) > 0.85 * all_threads
