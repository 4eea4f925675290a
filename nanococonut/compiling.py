"""torch.compile for the latent loop: the same numbers from a few graphs, without graph breaks.

A graph is compiled for fixed shapes. So prompts, suffixes and the slots for thoughts are padded to multiples of a fixed
length. One graph then computes every thought, however many there are. Padding does not change the results.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut import coconut
from nanococonut.model import GPT

PROMPT_BUCKET = 32  # prompts are padded to multiples of this many tokens (ours: few shapes, little padding)
SUFFIX_BUCKET = 8  # the same for suffixes, which are shorter
THOUGHT_BUCKET = 8  # up to 8 thoughts share one graph, 9 to 16 the next
EAGER = coconut.prefill, coconut.step  # the two functions that do the work, uncompiled


def compiled(backend: str = "inductor") -> tuple:
    """The compiled phases: per prompt bucket one graph for prefill and one for all thoughts, one per suffix shape."""
    torch._dynamo.config.cache_size_limit = 64  # shapes per function; torch's default of 8 is too few for the stages
    whole = torch.compile(fullgraph=True, dynamic=False, backend=backend)
    return whole(coconut.prefill), whole(coconut.step)


def forward(model: GPT, batch: coconut.Batch, phases: tuple) -> coconut.Output:
    """coconut.forward of a batch, with compiled or eager phases."""
    if phases is EAGER:
        return coconut.forward(model, batch)
    padded = batch._replace(
        prompt=pad_to(batch.prompt, PROMPT_BUCKET)[:, : model.config.block_size],
        suffix=pad_to(batch.suffix, SUFFIX_BUCKET),
        targets=pad_to(batch.targets, SUFFIX_BUCKET, value=coconut.NOTHING),
        question=None if batch.question is None else pad_to(batch.question, SUFFIX_BUCKET, left=True),
    )
    out = coconut.forward(model, padded, *phases, round_up(max(1, batch.n_thoughts), THOUGHT_BUCKET))
    return out._replace(logits=out.logits[:, : batch.suffix.size(1)])


def round_up(n: int, multiple: int) -> int:
    """n rounded up to a multiple: 33 to 64, for multiples of 32."""
    return -(-n // multiple) * multiple


def pad_to(ids: Tensor, multiple: int, value: int = 0, left: bool = False) -> Tensor:
    """ids (B, T) padded with value, on the right or on the left, to a multiple of columns."""
    n = round_up(ids.size(1), multiple) - ids.size(1)
    return F.pad(ids, (n, 0) if left else (0, n), value=value)


class Loss(torch.nn.Module):
    """A forward pass as a module that returns the losses, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: GPT, phases: tuple):
        super().__init__()
        self.model, self.phases = model, phases

    def forward(self, batch: coconut.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss on words, the loss that teaches thoughts, and the mean norm of the thoughts."""
        out = forward(self.model, batch, self.phases)
        return out.loss, out.teaching_loss, out.thoughts.detach().float().norm(dim=-1).mean()
