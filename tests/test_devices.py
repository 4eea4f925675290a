"""The same numbers on every device: the released code's in float32 and, roughly, in bfloat16; `-m gpu` asks CUDA."""

import contextlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanococonut import coconut, pretrained
from nanococonut.curriculum import Batch, pad
from nanococonut.model import GPT, GPTConfig

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts


@pytest.fixture(scope="module")
def released():
    """A function of the device: the released code's weights and batch there, and its numbers."""
    with np.load(Path(__file__).with_name("coconut_reference.npz"), allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    meta = json.loads(str(found["meta"]))
    weights = {n.removeprefix("weight."): torch.tensor(a) for n, a in found.items() if n.startswith("weight.")}
    questions = [[*found[f"question.{i}"].tolist(), meta["bot"]] for i in range(meta["rows"])]
    suffixes = [found[f"suffix.{i}"].tolist() for i in range(meta["rows"])]
    starts = [[meta["eot"], *suffix[:-1]] for suffix in suffixes]
    rows = (pad(questions, meta["eos"]), torch.tensor(list(map(len, questions))), pad(starts, meta["eos"]))

    def on(device: str) -> tuple[GPT, Batch]:
        model = pretrained.from_state_dict(weights, meta["n_head"]).float().to(device)
        return model, Batch(*(x.to(device) for x in (*rows, pad(suffixes, -100))), meta["n_thoughts"])

    return on, found, meta


def norms(model) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in model.named_parameters()}


@pytest.mark.parametrize("device", DEVICES)
def test_the_papers_numbers_in_float32(device, released):
    on, found, meta = released
    model, batch = on(device)
    out = coconut.forward(model, batch)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(float(found["loss"]), abs=1e-4)
    other, _ = on("cpu")
    coconut.forward(other.double(), Batch(*(x.cpu() for x in batch[:4]), batch.n_thoughts)).loss.backward()
    for (name, found_norm), expected in zip(norms(model).items(), norms(other).values(), strict=True):
        assert found_norm == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    rows = coconut.generate(model, batch.prompt, batch.prompt_len, batch.n_thoughts, meta["eot"], meta["eos"], 12)
    assert rows == [found[f"greedy.{i}"].tolist() for i in range(meta["rows"])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_papers_numbers_in_bfloat16(device, compiled, released):
    on, found, _ = released
    model, batch = on(device)
    exact, _ = on(device)
    coconut.forward(exact, batch).loss.backward()
    if compiled:
        model.compile_blocks()
    flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device == "cuda" else contextlib.nullcontext()
    with torch.autocast(device, torch.bfloat16), flash:  # this kernel, or an error
        loss = coconut.forward(model, batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(float(found["loss"]), rel=0.01)
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
    for (name, found_norm), expected in zip(norms(model).items(), norms(exact).values(), strict=True):
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
