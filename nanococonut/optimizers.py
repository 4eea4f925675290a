"""AdamW and Muon, their learning rates over a stage, and one step of them."""

import math

import torch

from nanococonut.config import UserError
from nanococonut.model import GPT
from nanococonut.settings import TrainConfig


def make(model: GPT, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW; with muon_lr, Muon for the blocks' matrices and AdamW for all other parameters. Raises UserError."""
    if c.muon_lr and not hasattr(torch.optim, "Muon"):
        raise UserError(f"--muon_lr needs torch 2.9 or later, this is {torch.__version__}; or use --muon_lr=0")
    # Differs from the paper: Muon [Jordan 2024]; docs/results.md compares it with AdamW alone.
    matrices = [p for p in model.h.parameters() if p.dim() == 2] if c.muon_lr else []
    taken = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers = [torch.optim.AdamW(rest, c.lr, (0.9, c.beta2), weight_decay=c.weight_decay, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, c.muon_lr, weight_decay=c.weight_decay))
    return optimizers


def update(model: GPT, optimizers: list, c: TrainConfig, factor: float) -> torch.Tensor:
    """One step of the optimizers at factor times their learning rates; returns the gradient norm before clipping."""
    length = torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip or math.inf)
    for optimizer, rate in zip(optimizers, (c.lr, c.muon_lr), strict=False):  # without Muon there is one optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return length


def factor(n_behind: int, n_steps: int, c: TrainConfig) -> float:
    """The factor of the learning rates in a stage: it rises over `warmup` steps and falls over the last share `decay`.

    >>> [factor(step, 100, TrainConfig(warmup=10, decay=0.5)) for step in (0, 9, 50, 75)]
    [0.1, 1.0, 1.0, 0.5]
    """
    up = min(1.0, (n_behind + 1) / c.warmup) if c.warmup else 1.0
    down = min(1.0, (n_steps - n_behind) / (c.decay * n_steps)) if c.decay else 1.0
    return up * down
