"""The same numbers on every device: the released code's in float32 and, roughly, in bfloat16.

`-m gpu` asks CUDA.
"""

import contextlib
import copy
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanococonut import coconut, compiling, device
from nanococonut.cli import UserError
from nanococonut.coconut import Batch
from nanococonut.model import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts


def moved(model: GPT, batch: Batch, where: str) -> tuple[GPT, Batch]:
    """Copies of a model and its batch in float32 on a device."""
    there = [x.to(where) for x in batch[:4]]
    return copy.deepcopy(model).float().to(where), Batch(*there, batch.n_thoughts)


def norms(model) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in model.named_parameters()}


@pytest.mark.parametrize("where", DEVICES)
def test_the_papers_numbers_in_float32(where, released, released_batch, reference, meta):
    model, batch = moved(released, released_batch, where)
    out = coconut.forward(model, batch)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(float(reference["loss"]), abs=1e-4)
    coconut.forward(released, released_batch).loss.backward()  # in float64, on the CPU
    for (name, found_norm), expected in zip(
        norms(model).items(), norms(released).values(), strict=True
    ):
        assert found_norm == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    rows, _ = coconut.generate(
        model, batch.prompt, batch.prompt_len, batch.n_thoughts, meta["eot"], meta["eos"], 12
    )
    assert rows == [reference[f"greedy.{i}"].tolist() for i in range(meta["rows"])]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_papers_numbers_in_bfloat16(where, compiled, released, released_batch, reference):
    model, batch = moved(released, released_batch, where)
    coconut.forward(released, released_batch).loss.backward()  # in float64, on the CPU
    forward = coconut.forward
    if compiled:
        forward = functools.partial(compiling.forward, phases=compiling.compiled())
    kernel = contextlib.nullcontext()
    if where == "cuda":
        kernel = sdpa_kernel(SDPBackend.FLASH_ATTENTION)  # this one, or an error
    with torch.autocast(where, torch.bfloat16), kernel:
        loss = forward(model, batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(float(reference["loss"]), rel=0.01)
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
    for (name, found_norm), expected in zip(
        norms(model).items(), norms(released).values(), strict=True
    ):
        assert found_norm == pytest.approx(expected, rel=0.1, abs=1e-3), name


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device():
    model = GPT(GPTConfig(64, 64, 2, 2, 32, 0.0)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    ids = torch.randint(64, (4, 16), device="cuda")
    batch = Batch(ids, torch.full((4,), 16, device="cuda"), ids[:, :4], ids[:, 1:5], 3)
    for mode in ("default", "error"):  # the first step sets things up
        torch.cuda.set_sync_debug_mode(mode)
        with warnings.catch_warnings(), torch.autocast("cuda", torch.bfloat16):
            loss = coconut.forward(model, batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.set_sync_debug_mode("default")


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"--compile=true needs a C\+\+ compiler"):
        device.pick("cpu").compiles("true")
    assert not device.pick("cpu").compiles("auto")


def test_a_rank_that_torchrun_did_not_set_is_ignored(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert device.join("cpu").n_processes == 1


CAN_FORK = "fork" in multiprocessing.get_all_start_methods()


# On CUDA forks draw, which do not touch the GPU.
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_batches_drawn_ahead_are_the_same_in_order_and_leave_the_random_state_alone(where):
    before = torch.get_rng_state()
    machine = device.Machine(torch.device(where), torch.float32)
    drawn = list(machine.ahead(lambda i: (torch.arange(i), i), range(3, 20)))
    assert [(len(x), i) for x, i in drawn] == [(i, i) for i in range(3, 20)]
    assert torch.equal(torch.get_rng_state(), before)
    pids = set(machine.ahead(lambda i: os.getpid(), range(9)))
    assert (os.getpid() in pids) == (where == "cpu" or not CAN_FORK)


@pytest.mark.skipif(not CAN_FORK, reason="Windows has no forks")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_signal_for_the_whole_group_leaves_the_forks_alone(number, seconds):
    """As a terminal's Ctrl-C and torchrun send it.

    Batches take longer to draw than to use, or not.
    """
    code = f"""
import time, torch
from nanococonut import device, writer
with writer.stop_signals() as stop:
    machine = device.Machine(torch.device("cuda"), torch.float32)
    for i in machine.ahead(lambda i: time.sleep({seconds}) or i, range(2000)):
        print(i, flush=True)
        time.sleep(0.01)
        if stop and i > 200:
            raise SystemExit(7)
"""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, cwd=ROOT, **pipes
    )
    while process.stdout.readline() != "9\n":
        pass
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7, err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # as Slurm leaves it
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is missing"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"},
            "MASTER_PORT is missing",
        ),
        (
            {
                "WORLD_SIZE": "x",
                "RANK": "0",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
            },
            "WORLD_SIZE=x is no",
        ),
        (
            {
                "WORLD_SIZE": "2",
                "RANK": "y",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
            },
            "RANK=y is no",
        ),
    ],
)
def test_half_of_what_torchrun_sets_is_a_mistake_and_not_two_silent_trainings(
    monkeypatch, given, message
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{message}.*: start several processes with torchrun"):
        device.join("cpu", "float32", 8)


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")  # set by many batch systems
    monkeypatch.setenv("RANK", "0")
    assert device.join("cpu", "float32", 8).n_processes == 1
