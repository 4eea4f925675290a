"""Every row is trained once, an interrupted one goes on, a finished one is not repeated."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prepare
from nanococonut import cli, data, log
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.curriculum import METHODS
from nanococonut.lab import table1

ROOT = Path(__file__).parents[1]
SMALL = ["--train=32", "--valid=10", "--test=10", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]


@pytest.fixture
def small(workspace, monkeypatch):
    """A workspace with a little ProsQA, from which train.py can be started."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    os.symlink(ROOT / "train.py", workspace / "train.py")
    prepare.main(cli.parse(prepare.PrepareConfig, SMALL))
    return workspace


def run(*words):
    table1.main(cli.parse(table1.Table1Config, ["smoke", "--task=prosqa", *words]))


def test_a_table_is_trained_once_and_resumed(small, capsys, monkeypatch):
    run("--methods=cot", "--seeds=0", "--options=--save_every=1")
    times = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*.pt")}
    assert len(times) == 2
    started = []
    real = table1.start
    monkeypatch.setattr(
        table1, "start", lambda row, jobs: started.append(row.method) or real(row, jobs)
    )
    capsys.readouterr()
    run("--methods=cot,coconut", "--seeds=0", "--jobs=2", "--options=--save_every=1")
    assert started == ["coconut"], "the finished row is not repeated"
    assert all(p.stat().st_mtime_ns == before for p, before in times.items())
    printed = capsys.readouterr().out
    assert "2 runs of prosqa with preset smoke: 1 are finished" in printed
    assert "[2/2] coconut, seed 0: " in printed
    stem = Path("results/table1-prosqa-smoke")
    kept = json.loads(stem.with_suffix(".json").read_text())
    assert [(row["method"], row["seed"]) for row in kept["rows"]] == [("cot", 0), ("coconut", 0)]
    lines = stem.with_suffix(".md").read_text().splitlines()
    coconut = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert coconut[0] == "coconut" and coconut[1] == f"{100 * kept['rows'][1]['accuracy']:.1f}±0.0"
    assert coconut[-2:] == ["97.0±0.3", "14.2"], "the paper's figures stand beside"
    assert lines[4] == "| *chance* | 50.0 | 25.0 | - | - | - | - | - |", "and what no model gets"
    assert len(lines) == 8
    assert coconut[2] == f"{100 * kept['rows'][1]['both']:.1f}±0.0"
    assert kept["baselines_both"].keys() == kept["baselines"].keys()
    # from before there were twins
    old = [{k: v for k, v in row.items() if k != "both"} for row in kept["rows"]]
    c = table1.Table1Config("smoke", task="prosqa", name="old")
    assert table1.write_results(c, old).splitlines()[3].split(" | ")[2] == "-"


def test_an_interrupted_row_goes_on(small):
    run("--methods=coconut", "--seeds=0", "--options=--save_every=1")
    folder = Path("runs/table1-prosqa-smoke-coconut-0")
    (folder / "test.json").unlink()
    (folder / "ckpt.pt").unlink()  # as if it had been killed before its first checkpoint
    log.cut(folder / "log.csv", step=0)
    run("--methods=coconut", "--seeds=0", "--options=--save_every=1")
    assert (folder / "test.json").exists() and not list(Path("runs").glob("*-0-2"))


def listening():
    """What a shell or nohup may have told the tests to ignore, a program of theirs does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_runs_too(small, number):
    words = ["smoke", "--task=prosqa", "--methods=cot,coconut", "--seeds=0", "--jobs=2"]
    words.append("--options=--stage_steps=9000")
    command = [sys.executable, "-m", "nanococonut.table1", *words]
    table = subprocess.Popen(command, preexec_fn=listening, stderr=subprocess.PIPE)
    folders = [Path(f"runs/table1-prosqa-smoke-{method}-0") for method in ("cot", "coconut")]
    logs = [folder / "log.csv" for folder in folders]

    def has_begun(log):
        return log.exists() and log.read_text().count("\n") > 2

    while table.poll() is None and not all(map(has_begun, logs)):
        time.sleep(0.05)
    table.send_signal(number)
    _, err = table.communicate(timeout=600)
    assert table.returncode == 128 + number, err.decode()
    assert "Traceback" not in err.decode()
    for folder in folders:
        assert (folder / "ckpt.pt").exists(), "the run has saved"
        assert "stopped at step" in Path(f"{folder}.log").read_text(), "and it has ended"


def test_a_finished_row_of_other_options_or_data_is_refused(small):
    run("--methods=cot", "--seeds=0", "--options=--stage_steps=2")
    # said otherwise, the same run
    run("--methods=cot", "--seeds=0", "--options=--stage_steps=2,2,2 --save_every=1")
    with pytest.raises(
        UserError, match=r"table1.*-cot-0 was trained with --stage_steps=2,2,2 --lr=0.001: it goes"
    ):
        run("--methods=cot", "--seeds=0", "--options=--stage_steps=3 --lr=0.5")
    words = ["--seed=1", *SMALL]
    prepare.main(cli.parse(prepare.PrepareConfig, words))
    with pytest.raises(
        UserError,
        match=r"data/prosqa is not the data runs/table1-prosqa-smoke-cot-0 was trained on",
    ):
        run("--methods=cot", "--seeds=0", "--options=--stage_steps=2")


def test_mistakes(small):
    with pytest.raises(UserError, match="unknown method 'magic'"):
        run("--methods=cot,magic")
    with pytest.raises(UserError, match="data/nothing not found"):
        table1.main(table1.Table1Config("smoke", task="nothing"))
    with pytest.raises(UserError, match=r"--lr=-1.0 should be"):
        run("--methods=cot", "--seeds=0", "--options=--lr=-1")
    assert not Path("runs").exists(), "what cannot be trained is not started"
    with pytest.raises(
        UserError,
        match=r"cot, seed 0 did not finish, see runs/.*cot-0.log: .*--block_size=16 is too",
    ):
        run("--methods=cot", "--seeds=0", "--options=--block_size=16")


def test_the_paper_has_a_figure_for_every_row():
    for task in ("gsm8k", "prontoqa", "prosqa"):
        assert set(table1.paper(task)) == set(table1.METHODS)
    assert table1.paper("gsm8k")["icot"] == ["30.0", "2.2"]


def test_a_share_of_several_seeds():
    assert (table1.percent([0.5, 0.75]), table1.percent([0.5])) == ("62.5±17.7", "50.0±0.0")


def test_rows_that_are_the_same_training_are_trained_once(small, capsys, monkeypatch):
    monkeypatch.setattr(table1, "start", lambda row, jobs: pytest.fail(f"{row.method} was started"))
    dataset, rows = data.Dataset("prosqa"), {}
    for layout, schedule in itertools.product(("paper", "in_place"), ("0,0,0,4", "1,1,1,1")):
        words = ["smoke", f"--layout={layout}", f"--stage_steps={schedule}"]
        todo = {
            cli.parse(TrainConfig, [*words, f"--method={m}"], PRESETS, CHOICES): m for m in METHODS
        }
        rows[layout, schedule] = list(table1.distinct(todo, dataset).values())
    assert rows["paper", "0,0,0,4"] == ["cot", "no_cot", "pause", "coconut"], "the last stage alone"
    assert rows["in_place", "0,0,0,4"] == [method for method in METHODS if method != "icot"]
    assert rows["paper", "1,1,1,1"] == rows["in_place", "1,1,1,1"] == list(METHODS)
    printed = capsys.readouterr().out
    repeated = "no_curriculum, seed 0, is the same training as coconut and is left out"
    assert f"{repeated}; stages with steps" in printed


def test_options_with_a_path_that_has_a_space(small):
    with pytest.raises(UserError, match=r"--init_from=my runs/a.pt not found"):
        run("--methods=cot", "--seeds=0", "--options=--init_from='my runs/a.pt' --n_layer=1")
