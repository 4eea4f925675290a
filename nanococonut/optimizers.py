"""AdamW and Muon, their learning rates over a stage or a run, and one step of them."""

import math

import torch
from torch import Tensor

from nanococonut.model import GPT
from nanococonut.settings import TrainConfig


def orthogonal(x: Tensor, n_steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of x and singular values of about 1, by Newton-Schulz steps [Jordan 2024]."""
    if x.size(0) > x.size(1):
        return orthogonal(x.mT, n_steps).mT
    has_amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16")
    y = x.bfloat16() if x.is_cuda or has_amx else x  # bfloat16 suffices where it is fast
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(n_steps):
        square = y @ y.mT
        # 3.4445 y + (2.0315 square^2 - 4.7750 square) y, with each sum done where its product is
        factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        y = torch.addmm(y, factor, y, beta=3.4445)
    return y.to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal steps: as torch.optim.Muon, for earlier versions of torch and CPUs without bfloat16."""

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in [p for p in group["params"] if p.grad is not None]:
                mean = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                step = orthogonal(p.grad.lerp(mean, momentum))  # Nesterov's: one step of the momentum ahead
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(step, alpha=-lr * math.sqrt(max(1, p.size(0) / p.size(1))))


def make(model: GPT, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW; with muon_lr, Muon for the blocks' matrices and AdamW for all other parameters."""
    # Differs from the paper: Muon [Jordan 2024]; docs/results.md compares it with AdamW alone.
    matrices = [p for p in model.h.parameters() if p.dim() == 2] if c.muon_lr else []
    taken = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers = [torch.optim.AdamW(rest, c.lr, (0.9, c.beta2), weight_decay=c.weight_decay, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, c.muon_lr, weight_decay=c.weight_decay))
    return optimizers


def set_rates(optimizers: list, c: TrainConfig, factor: float) -> None:
    """Sets the learning rates of make()'s optimizers to factor times those of the settings."""
    for optimizer, rate in zip(optimizers, (c.lr, c.muon_lr), strict=False):  # without Muon there is one optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def factor(n_behind: int, n_steps: int, c: TrainConfig) -> float:
    """The factor of the learning rates: it rises over `warmup` steps and falls over the last share `decay` of n_steps.

    >>> [factor(step, 100, TrainConfig(warmup=10, decay=0.5)) for step in (0, 9, 50, 75)]
    [0.1, 1.0, 1.0, 0.5]
    """
    up = min(1.0, (n_behind + 1) / c.warmup) if c.warmup else 1.0
    down = min(1.0, (n_steps - n_behind) / (c.decay * n_steps)) if c.decay else 1.0
    return up * down
