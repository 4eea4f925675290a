"""The bench: its last line is JSON, and its counts are those of the arithmetic."""

import json
import shutil

import pytest
import torch

from nanococonut import cli
from nanococonut.cli import UserError
from nanococonut.lab import bench


def parsed(*words):
    return cli.parse(bench.BenchConfig, ["smoke", *words], choices={"preset": tuple(bench.SIZES)})


def test_flops_are_those_of_the_matrix_products():
    b = bench.Bench(parsed())
    (B, P, S), C, V = b.sizes, b.model.config.n_embd, b.model.config.vocab_size
    H, D = b.model.config.n_head, C // b.model.config.n_head
    attention = 2 * 2 * H * D  # scores and values, for each query and key
    first = 24 * C * C * B * P + attention * B * P * P  # a whole block
    last = 6 * C * C * B * P  # queries, keys and values
    # The rest of the first thought, which K = 0 never uses.
    thought = attention * B * P * P + (24 - 6) * C * C * B
    suffix = 2 * (24 * C * C * B * S + attention * B * S * (P + S)) + 2 * C * V * B * S
    # Backward is twice forward.
    assert b.flops(b.batch(B, 0)) == 3 * (first + last + suffix) + thought


@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
def test_the_command_measures_everything_and_ends_with_json(workspace, capsys):
    bench.main(parsed("--max_thoughts=1", "--repeats=1"))
    *_, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert [row["thoughts"] for row in found["rows"]] == [0, 1]
    for row in found["rows"]:
        assert 0 < row["mfu"] < 1
        assert 0 < row["step"] < 60
    assert found["matmul_gflops"] > 1
    first, last = (row["step"] for row in found["rows"])
    assert found["last_over_first"] == pytest.approx(last / first)
    for fact in ("reference_step", "compiled_first", "compiled_last"):
        assert 0 < found[fact] < 60
    kept = json.loads((workspace / "results/bench-smoke-cpu.json").read_text())
    assert kept["rows"] == found["rows"]


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(UserError, match="repeats"):
        bench.main(parsed("--repeats=0"))
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setattr(bench.Bench, "seconds", lambda *_: pytest.fail("nothing is timed before"))
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        bench.main(parsed())
    assert torch.is_grad_enabled()
