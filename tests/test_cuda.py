"""What a CUDA GPU has to do as the CPU does: train, resume, stop, answer.

`pytest -m gpu` runs it.
"""

import functools
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from test_coconut import shared_batch, small_model
from test_resume import SUICIDE, finished, prepared, read_csv, start, state_of

import prepare
import train
from nanococonut import (
    batching,
    cli,
    coconut,
    compiling,
    data,
    device,
    evaluate,
    opening,
    optim,
    runs,
)
from nanococonut.config import CHOICES, PRESETS, TrainConfig

# The warnings are of torch.compile's own parts.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[1]
ALL = ["smoke", "--stage_steps=6,6,6", "--log_every=1", "--save_every=4", "--eval_every=5"]
ALL += ["--muon_lr=0.01", "--lr=0.01", "--augment=2", "--grow=10"]


@pytest.fixture
def exact():
    """Matrix products in float32 as they are, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def trained(*words: str) -> None:
    train.main(cli.parse(TrainConfig, [*ALL, *words], PRESETS, CHOICES))


def losses(name: str) -> list[float]:
    rows = read_csv(f"runs/{name}/log.csv")
    return [float(row["value"]) for row in rows if row["metric"] == "loss"]


@pytest.mark.parametrize("compiled", [False, True])
def test_questions_about_one_prompt(compiled, exact):
    together, _ = shared_batch()
    expected_model = small_model()
    expected = coconut.forward_reference(expected_model, together)  # in float64, on the CPU
    (expected.loss + expected.next_loss).backward()
    model = small_model().float().cuda()
    moved = type(together)(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in together))
    forward = coconut.forward
    if compiled:
        forward = functools.partial(compiling.forward, phases=compiling.compiled())
    out = forward(model, moved)
    (out.loss + out.next_loss).backward()
    assert out.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert out.next_loss.item() == pytest.approx(expected.next_loss.item(), abs=1e-5)
    for (name, p), other in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad.cpu().double(), other.grad, atol=1e-5, rtol=1e-3, msg=name
        )


def test_a_run_takes_the_steps_of_the_cpu(workspace):
    prepared()
    for where in ("cpu", "cuda"):
        words = ["--dtype=float32", "--compile=false", "--micro_batch_size=6"]  # two parts a step
        trained(*words, f"--device={where}", f"--name={where}")
    assert len(losses("cpu")) == 18
    assert losses("cuda") == pytest.approx(losses("cpu"), rel=0.01)


def test_a_compiled_run_in_bfloat16_stays_near(workspace):
    """What wide models use on CUDA."""
    prepared()
    trained("--device=cpu", "--name=cpu")
    trained("--dtype=bfloat16", "--compile=true", "--name=compiled")
    assert losses("compiled") == pytest.approx(losses("cpu"), rel=0.05)
    assert next(iter(state_of("compiled")["model"].values())).dtype == torch.float32


def test_a_killed_run_goes_on(workspace):
    prepared()
    words = [*ALL, "--device=cuda", "--dtype=float32", "--compile=false", "--dropout=0.1"]
    code, out, err = finished(*words, "--name=whole")
    assert code == 0 and "parameters on cuda" in out, err
    assert finished("ckpt.pt", "12", *words, "--name=cut", code=SUICIDE)[0] == -signal.SIGKILL
    assert state_of("cut")["step"] == 8
    code, _, err = finished(*words, "--name=cut", "--resume=true")
    assert code == 0, err
    assert losses("cut") == pytest.approx(losses("whole"), rel=1e-3)


def test_ctrl_c_saves_though_other_processes_draw_batches(workspace):
    prepared()
    words = ["smoke", "--stage_steps=40000", "--save_every=1000000", "--log_every=1", "--name=run"]
    process = start(*words, start_new_session=True)
    log = Path("runs/run/log.csv")
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err.decode()
    assert f"stopped at step {state_of('run')['step']}" in out.decode()
    assert "Traceback" not in err.decode()


def test_a_whole_training_step_never_waits_for_the_device(workspace):
    prepared()
    c = cli.parse(TrainConfig, ALL, PRESETS, CHOICES)
    dataset, machine = data.Dataset("prosqa"), device.pick("cuda", "bfloat16")
    schedule = batching.Schedule(c, dataset.meta["longest"])
    problems = dataset.split("train")
    model = opening.starting_model(c, dataset, schedule.n_positions).cuda()
    replay = compiling.Replay(
        lambda *part: train.losses(model, *part, coconut.forward, machine), model
    )
    held = optim.make(model, c)
    batch = batching.draw_batch(c, problems, schedule, dataset.special, 15)
    try:
        for mode in ("default", "error"):  # the first step sets things up
            torch.cuda.set_sync_debug_mode(mode)
            with warnings.catch_warnings():
                train.accumulate(model, batch, c, machine, replay=replay)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in held:
                    optimizer.step()
                    optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_model_of_the_project_answers_as_on_the_cpu():
    found = {}
    for where in ("cpu", "cuda"):
        run = runs.Run(str(ROOT / "models/prosqa.pt"), where)
        c = prepare.PrepareConfig(train=200, valid=1, test=1, seed=12345)
        rows = prepare.generate(c)["train"]
        found[where], _ = evaluate.measure(run, data.Split(run.encoding, rows))
        assert run.machine.device.type == where
    assert abs(found["cuda"]["accuracy"] - found["cpu"]["accuracy"]) <= 0.02, found
