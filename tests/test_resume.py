"""A run that was cut off anywhere ends as if nothing had been, and so does one of two processes."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import prepare
import train
from nanococonut import cli, coconut, log, opening, optim, writer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig

ROOT = Path(__file__).parents[1]
ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
WORDS = ["smoke", "--micro_batch_size=5", "--dropout=0.1", "--decay=0.5", "--muon_lr=0.01"]
# A run whose rates rise over few steps, and whose stages are learned in their middle.
SHORT = """
import train
from nanococonut import optim, writer
optim.WARMUP, writer.LEARNED = 3, 11.0
"""
TRAIN = SHORT + "train.cli.run(train.main, train.TrainConfig, train.PRESETS, train.CHOICES)"
# A run that kills itself while it writes the file given, at the step given: half a checkpoint lies
# there then.
SUICIDE = """
import os, signal, sys, torch, train
real, name, step = torch.save, sys.argv.pop(1), int(sys.argv.pop(1))
def save(state, file):
    real(state, file)
    if (os.path.basename(file.name), state["step"]) == (f"{name}.{os.getpid()}.tmp", step):
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
train.cli.run(train.main, train.TrainConfig, train.PRESETS, train.CHOICES)
"""


def prepared(*words):
    small = ["--train=32", "--valid=10", "--test=10", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]
    prepare.main(cli.parse(prepare.PrepareConfig, [*small, *words]))


def trained(*words):
    train.main(cli.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def read_csv(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def start(*words, code=None, **how):
    program = ["-c", code] if code else [str(ROOT / "train.py")]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    return subprocess.Popen([sys.executable, *program, *words], env=os.environ | ENV, **pipes)


def finished(*words, code=None):
    process = start(*words, code=code)
    out, err = process.communicate(timeout=600)
    return process.returncode, out.decode(), err.decode()


def wait_for_a_step(process):
    """Until the run has logged a step, or has ended: a signal before would end it at once."""
    log = Path("runs/run/log.csv")
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.05)


def state_of(name, file="ckpt.pt"):
    return torch.load(f"runs/{name}/{file}", weights_only=True)


def log_of(name):
    """The rows of a run's log that do not depend on the clock."""
    return [row for row in read_csv(f"runs/{name}/log.csv") if row["metric"] != "seconds"]


def assert_same_run(one, other):
    for file in ("ckpt.pt", "best.pt"):
        a, b = state_of(one, file), state_of(other, file)
        assert (a["step"], a["best"]) == (b["step"], b["best"])
        for name, weight in a["model"].items():
            assert torch.equal(weight, b["model"][name]), f"{file}: {name}"
    assert log_of(one) == log_of(other)


def test_a_run_killed_at_random_moments_ends_with_the_same_parameters(workspace):
    """Five SIGKILLs at moments drawn anew each time; the seed is printed with a failure."""
    prepared()
    words = [*WORDS, "--stage_steps=60,60,60", "--save_every=7", "--eval_every=25"]
    words += ["--augment=2", "--grow=20,10"]
    assert finished(*words, "--name=whole", code=TRAIN)[0] == 0
    n_steps = state_of("whole")["n_steps"]
    assert n_steps != [60, 60, 60] and sum(n_steps) == 180, (
        f"a stage was learned before its steps were over: {n_steps}"
    )
    seed = time.time_ns() % 10**6
    rng, n_kills, steps = random.Random(seed), 0, []
    while n_kills < 5:
        again = ["--resume=true"] if n_kills else []
        process = start(*words, "--name=cut", *again, code=TRAIN)
        before = steps[-1] if steps else 0
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            if Path("runs/cut/ckpt.pt").exists() and state_of("cut")["step"] > before:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, (
            f"seed {seed}: the run ended before it was killed {n_kills + 1} times"
        )
        n_kills += 1
        steps.append(state_of("cut")["step"])
    print(f"killed {n_kills} times, checkpoints at {steps}, seed {seed}")
    assert steps == sorted(steps) and steps[-1] < 180, f"seed {seed}: {steps}"
    assert finished(*words, "--name=cut", "--resume=true", code=TRAIN)[0] == 0
    assert_same_run("whole", "cut")


@pytest.mark.parametrize(("file", "step"), [("ckpt.pt", 12), ("best.pt", 12), ("ckpt.pt", 16)])
def test_a_run_killed_while_it_saves_at_a_stage_switch(workspace, file, step):
    prepared()
    words = [*WORDS, "--stage_steps=6,6,6", "--save_every=4", "--log_every=5"]
    assert finished(*words, "--name=whole", code=TRAIN)[0] == 0
    code, _, err = finished(file, str(step), *words, "--name=cut", code=SHORT + SUICIDE)
    assert code == -signal.SIGKILL, err
    assert len(list(Path("runs/cut").glob(f"{file}.*.tmp"))) == 1, "it died while it wrote"
    saved = {("ckpt.pt", 12): 8, ("best.pt", 12): 8, ("ckpt.pt", 16): 12}
    assert state_of("cut")["step"] == saved[file, step]
    assert finished(*words, "--name=cut", "--resume=true", code=TRAIN)[0] == 0
    assert not list(Path("runs/cut").glob("*.tmp")), (
        "whoever goes on clears away what a killed process left"
    )
    assert_same_run("whole", "cut")


@pytest.mark.parametrize(
    "command", [["sample.py"], ["-m", "nanococonut.evaluate"], ["train.py", "smoke"]]
)
def test_ctrl_c_while_torch_is_loaded_is_no_traceback(tmp_path, command):
    (tmp_path / "torch").mkdir()
    slow = "import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "torch/__init__.py").write_text(slow)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found_first = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def keys():  # tests may be under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=found_first, preexec_fn=keys, **pipes
    )
    assert process.stdout.readline() == b"loading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, b"")


def test_importing_the_package_leaves_ctrl_c_to_the_program():
    usual = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # nohup has it ignored
    code = f"import signal; {usual}; import nanococonut; print(signal.getsignal(2).__name__)"
    assert finished(code=code)[:2] == (0, "default_int_handler\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(workspace, number):
    prepared()
    words = ["smoke", "--stage_steps=4000", "--save_every=100000", "--log_every=1", "--name=run"]
    # Tests may be under nohup.
    process = start(*words, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    wait_for_a_step(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    step = state_of("run")["step"]
    assert process.returncode == 128 + number
    last = f"stopped at step {step}; to go on: the same command with --name=run --resume=true"
    assert out.decode().splitlines()[-1] == last
    assert "Traceback" not in err.decode()


def test_nohup_is_obeyed(workspace):
    prepared()
    words = ["smoke", "--stage_steps=60", "--max_stage=0", "--log_every=1", "--name=run"]
    process = start(*words, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_a_step(process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    assert state_of("run")["step"] == 60


def test_a_second_signal_ends_at_once():
    # Where tests run in the background, a shell has it ignored.
    before = signal.getsignal(signal.SIGINT)
    with writer.stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "a second Ctrl-C ends it"
        # A batch system may send one to the group and one to the process.
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) == before, "what was there before is back"


def test_resume_goes_on_with_the_same_settings_only(workspace, capsys):
    prepared()
    with pytest.raises(UserError, match="runs/run not found: nothing to resume"):
        trained("--name=run", "--resume=true")
    trained("--name=run")
    with pytest.raises(
        UserError, match=r"was trained with --stage_steps=4,4,4 --lr=0.001: it goes on with"
    ):
        trained("--name=run", "--resume=true", "--lr=0.5", "--stage_steps=4,5")
    before = state_of("run")["model"]
    trained("--name=run", "--resume=true")  # nothing left to do
    after = state_of("run")["model"]
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    older = torch.load("runs/run/ckpt.pt", weights_only=True)
    torch.save(older | {"config": older["config"] | {"mix": 0.3}}, "runs/run/ckpt.pt")
    said = r"is of an earlier version, with --mix=0.3; its weights .* --init_from=run"
    with pytest.raises(UserError, match=said):
        trained("--name=run", "--resume=true")
    torch.save(older, "runs/run/ckpt.pt")
    prepared("--seed=1")
    with pytest.raises(UserError, match="data/prosqa is not the data runs/run was trained on"):
        trained("--name=run", "--resume=true")


def test_a_run_without_a_checkpoint_starts_again(workspace):
    prepared()
    trained("--name=whole")
    trained("--name=cut")
    for file in ("ckpt.pt", "best.pt", "curves.png"):
        Path(f"runs/cut/{file}").unlink()
    # It was killed before step 4, which would have been saved.
    log.cut(Path("runs/cut/log.csv"), step=3)
    trained("--name=cut", "--resume=true")
    assert_same_run("whole", "cut")


def test_a_full_disk_leaves_the_last_checkpoint_whole(workspace, monkeypatch):
    prepared()
    real = torch.save

    def full(state, file):
        if state["step"] > 8:
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write runs/run/.*: No space left on device"):
        trained("--name=run", "--save_every=2")
    assert state_of("run")["step"] == 8
    assert not list(Path("runs/run").glob("*.tmp"))
    monkeypatch.setattr(torch, "save", real)
    trained("--name=run", "--save_every=2", "--resume=true")
    trained("--name=whole")
    assert_same_run("whole", "run")


MEMORY_IS_USED_UP = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_IS_USED_UP, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "where",
    [(coconut, "forward"), (train, "starting_model"), (optim, "make"), (coconut, "generate")],
    ids=str,
)
def test_memory_that_does_not_suffice_is_one_line(workspace, monkeypatch, capsys, where, error):
    prepared()

    def too_much(*_, **__):
        raise error

    monkeypatch.setattr(*where, too_much)
    monkeypatch.setattr(sys, "argv", ["train.py", "smoke", "--task=prosqa", "--device=cpu"])
    with pytest.raises(SystemExit) as end:
        cli.run(train.main, TrainConfig, PRESETS, CHOICES)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2
    advice = "with fewer examples at once, and the same result: --micro_batch_size=4"
    assert said == f"train.py: out of memory; {advice}"


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (dict(batch_size=64, micro_batch_size=10), "--micro_batch_size=5"),
        (dict(batch_size=64, micro_batch_size=5, augment=4), "--micro_batch_size=4"),
        (dict(batch_size=64, micro_batch_size=4, augment=4), "--n_embd"),
        (dict(batch_size=1), "--n_embd"),
    ],
)
def test_the_advice_about_memory_can_help(options, advice):
    assert advice in TrainConfig(**options).less_memory


def test_another_error_is_not_about_memory():
    assert not cli.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("operation failed due to a previous error")  # noqa: B904
    except RuntimeError as error:
        assert cli.is_out_of_memory(error)


def test_two_processes_go_on_as_one_would(workspace):
    """Gradients added up over gloo: a run begun by one process and resumed by two.

    It goes through the latent stages.
    """
    prepared()
    words = ["smoke", "--stage_steps=4,4,4", "--log_every=1", "--micro_batch_size=3"]
    words += ["--device=cpu", "--save_every=2", "--grow=2", "--muon_lr=0.005"]
    # 5 graphs: one process has 3 of them in 3 parts, and the other one 2
    words += ["--augment=2", "--batch_size=10"]
    assert finished(*words, "--name=one")[0] == 0
    finished("ckpt.pt", "4", *words, "--name=two", code=SUICIDE)
    assert state_of("two")["step"] == 2
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(ROOT / "train.py"), *words, "--name=two", "--resume=true"]
    done = subprocess.run(command, env=os.environ | ENV, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.decode().count("runs/two goes on from step 2") == 1, (
        "the second process is silent"
    )

    def losses(name):
        rows = read_csv(f"runs/{name}/log.csv")
        return {(r["step"], r["stage"]): float(r["value"]) for r in rows if r["metric"] == "loss"}

    one, two = losses("one"), losses("two")
    assert one.keys() == two.keys() and len(one) >= 9
    assert all(abs(one[key] - two[key]) < 1e-4 for key in one), (one, two)


def test_an_error_gives_the_signal_handlers_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError), writer.stop_signals():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise UserError("a mistake")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_outside_the_main_thread_has_no_handlers():
    """As a notebook's or a web server's worker does it: Python refuses handlers there."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with writer.stop_signals() as stop:
            seen.append((stop, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_a_folder_without_a_run_in_it_is_used(workspace):
    prepared()
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/train.log").write_text("of whoever started it")
    trained("--name=a", "--stage_steps=1")
    assert Path("runs/a/best.pt").exists()
    with pytest.raises(UserError, match="runs/a exists"):
        trained("--name=a", "--stage_steps=1")


def test_two_processes_cannot_write_one_run(workspace):
    prepared()
    words = [*WORDS, "--stage_steps=2000", "--save_every=1", "--name=a"]
    process = start(*words)
    while not Path("runs/a/ckpt.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    code, _, err = finished(*words, "--resume=true")
    assert code == 2
    assert "runs/a is being trained by another process; choose another --name, or wait" in err
    process.kill()
    process.communicate()
    os.close(opening.lock(Path("runs/a")))  # a killed process has released it
