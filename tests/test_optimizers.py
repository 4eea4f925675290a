"""Muon: its orthogonal steps, and torch's own Muon beside it."""

import pytest
import torch

from nanococonut.optim import Muon, orthogonal

pytestmark = pytest.mark.usefixtures("without_amx")
SHAPES = [(24, 8), (8, 24), (16, 16), (1, 8)]


@pytest.fixture
def without_amx(monkeypatch):
    """A CPU that has no fast bfloat16, as most have none."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_keeps_its_singular_vectors_and_gets_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = u.mT @ orthogonal(x) @ vh.mT  # diagonal if the singular vectors are the same
    torch.testing.assert_close(kept, torch.diag(kept.diagonal()), atol=1e-12, rtol=0)
    large = s > 0.02 * x.norm()  # five steps lift a singular value of 0.02 into the range
    assert large.any() and ((kept.diagonal()[large] > 0.6) & (kept.diagonal() < 1.25)[large]).all()


def test_it_computes_in_float32_on_the_cpu():
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    exact = orthogonal(x.double())
    assert (orthogonal(x) - exact).abs().max() < 1e-5  # in bfloat16 0.01
    assert orthogonal(x).dtype == torch.float32


def test_it_computes_in_bfloat16_where_the_cpu_does_so_fast(monkeypatch):
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    exact = orthogonal(x)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert 1e-4 < (orthogonal(x) - exact).abs().max() < 0.05
    assert orthogonal(x).dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_takes_the_steps_of_torchs_muon(shape):
    theirs_class = getattr(torch.optim, "Muon", None)
    if theirs_class is None:
        assert torch.__version__ < "2.9"
        return
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    how = dict(lr=0.1, weight_decay=0.2, momentum=0.9)
    optimizers = Muon([ours], **how), theirs_class([theirs], **how)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    assert (ours - start).abs().max() > 0.1
    difference = (ours - theirs).norm() / (theirs - start).norm()
    assert difference < 0.02  # torch's Newton-Schulz rounds to bfloat16, 8 bits
