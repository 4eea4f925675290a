"""What tests share: a folder to stand in, the devices they see, and the paper's numbers."""

import json
import os
import sys
from pathlib import Path

# Two threads, so that two runs of a test round alike. Before torch, which reads it when it is
# loaded.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

from nanococonut import pretrained  # isort: split

import numpy as np
import pytest
import torch
from torch.utils._triton import has_triton

from nanococonut.batching import pad
from nanococonut.coconut import Batch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # prepare, train and sample are scripts at the top
os.environ.setdefault("MPLBACKEND", "Agg")
# Numbers of the paper's released code.
REFERENCE = Path(__file__).with_name("coconut_reference.npz")


@pytest.fixture(autouse=True)
def devices_of_the_test(request, monkeypatch):
    """Tests run on the CPU, where a run repeats bit for bit.

    Those marked gpu see CUDA as well, and processes MPS.
    """
    has_triton.cache_clear()  # it keeps whether there is CUDA
    if request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that a test starts
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty folder to run the commands in: data/ and runs/ are relative to where one stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def reference():
    with np.load(REFERENCE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def meta(reference):
    return json.loads(str(reference["meta"]))


@pytest.fixture
def released(reference, meta):
    weights = {
        n.removeprefix("weight."): torch.tensor(a).double()
        for n, a in reference.items()
        if n.startswith("weight.")
    }
    return pretrained.from_state_dict(weights, n_head=meta["n_head"])


@pytest.fixture(scope="session")
def released_batch(reference, meta):
    questions = [reference[f"question.{i}"].tolist() for i in range(meta["rows"])]
    suffixes = [reference[f"suffix.{i}"].tolist() for i in range(meta["rows"])]
    prompts = [[*question, meta["bot"]] for question in questions]
    return Batch(
        prompt=pad(prompts, meta["eos"]),
        prompt_len=torch.tensor([len(p) for p in prompts]),
        suffix=pad([[meta["eot"], *s[:-1]] for s in suffixes], meta["eos"]),
        targets=pad(suffixes, -100),
        n_thoughts=meta["n_thoughts"],
    )
