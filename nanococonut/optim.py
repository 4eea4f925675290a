"""AdamW and Muon, and their learning rates over a stage or a run."""

import math

import torch
from torch import Tensor

from nanococonut.config import TrainConfig
from nanococonut.model import GPT

WEIGHT_DECAY = 0.01  # torch's default for AdamW, as in the released code; on all parameters
WARMUP = 100  # steps over which rates that fall later rise before (ours)
MOMENTUM = 0.9  # of Muon (ours); its author has 0.95, see docs/results.md
MAX_NORM = 1.0  # of the gradient, with Muon (ours); the released code does not clip


def is_fast_in_bfloat16(x: Tensor) -> bool:
    """Whether the device of x multiplies matrices faster in bfloat16: a GPU, or a CPU with AMX."""
    if x.is_cuda:
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # an earlier version of torch
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def orthogonal(x: Tensor, n_steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of x and singular values of about 1.

    By Newton-Schulz steps [Jordan 2024], for which bfloat16 suffices.
    """
    if x.size(0) > x.size(1):
        return orthogonal(x.mT, n_steps).mT
    y = x.bfloat16() if is_fast_in_bfloat16(x) else x
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(n_steps):
        square = y @ y.mT
        # 3.4445 y + (2.0315 square^2 - 4.7750 square) y, with each sum done where its product is
        factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        y = torch.addmm(y, factor, y, beta=3.4445)
    return y.to(x.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal steps.

    As torch.optim.Muon, but for earlier versions of torch too, and for CPUs without bfloat16. Its
    default momentum is another one.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = MOMENTUM):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.step_of(p, **group)

    def step_of(self, p: Tensor, lr: float, weight_decay: float, momentum: float, **_) -> None:
        """One step of one matrix."""
        mean = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        mean.lerp_(p.grad, 1 - momentum)
        # Nesterov's: one step of the momentum ahead.
        direction = orthogonal(p.grad.lerp(mean, momentum))
        scale = math.sqrt(max(1, p.size(0) / p.size(1)))
        p.mul_(1 - lr * weight_decay)
        p.add_(direction, alpha=-lr * scale)


def make(model: GPT, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW; with muon_lr, Muon for the blocks' matrices and AdamW for all other parameters."""
    matrices = []
    if c.muon_lr:
        # Differs from the paper: Muon [Jordan 2024]; docs/results.md compares it with AdamW alone.
        matrices = [p for p in model.h.parameters() if p.dim() == 2]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    # 0.999: torch's default, as in the released code. 0.99: ours.
    betas = (0.9, 0.99 if c.muon_lr else 0.999)
    optimizers = [torch.optim.AdamW(others, c.lr, betas, weight_decay=WEIGHT_DECAY, fused=True)]
    if c.muon_lr:
        optimizers.append(Muon(matrices, c.muon_lr, weight_decay=WEIGHT_DECAY))
    return optimizers


def max_norm(c: TrainConfig) -> float:
    """The gradient's largest norm, to which it is clipped."""
    return MAX_NORM if c.muon_lr else math.inf


def set_rates(optimizers: list, c: TrainConfig, factor: float) -> None:
    """Sets the learning rates of make()'s optimizers to factor times those of the settings."""
    for optimizer in optimizers:
        rate = c.muon_lr if isinstance(optimizer, Muon) else c.lr
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def factor(n_behind: int, n_steps: int, c: TrainConfig) -> float:
    """The factor of the learning rates after n_behind of n_steps steps.

    With --decay it rises over WARMUP steps, and falls over the last share `decay` of the steps.

    >>> [factor(step, 1000, TrainConfig(decay=0.5)) for step in (0, 99, 500, 750)]
    [0.01, 1.0, 1.0, 0.5]
    """
    if not c.decay:
        return 1.0
    rise = min(1.0, (n_behind + 1) / WARMUP)
    fall = min(1.0, (n_steps - n_behind) / (c.decay * n_steps))
    return rise * fall
