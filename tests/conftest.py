import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # prepare, train and sample are scripts at the top
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty folder to run the commands in: data/ and runs/ are relative to where one stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(min(2, os.cpu_count() or 1))
