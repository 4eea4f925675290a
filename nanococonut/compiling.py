"""torch.compile for the latent loop: the same numbers from few graphs, each of them whole.

A graph is made for fixed shapes. So prompts, suffixes and the room for thoughts are padded to multiples of some length,
and one graph then makes every thought, whatever their number. Padding changes no result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut import coconut
from nanococonut.model import GPT

PROMPT_BUCKET = 32  # prompts are padded to multiples of this many tokens (ours: few shapes, little padding)
SUFFIX_BUCKET = 8  # suffixes are shorter
THOUGHT_BUCKET = 8  # up to 8 thoughts share one graph, 16 the next
EAGER = coconut.prefill, coconut.step  # the two functions that do the work, as they stand there


def compiled(backend: str = "inductor") -> tuple:
    """Compiled phases: per prompt bucket a graph for prefill and one for all thoughts, and one per suffix shape."""
    torch._dynamo.config.cache_size_limit = 64  # shapes a function may have; torch's own 8 are fewer than stages need
    whole = torch.compile(fullgraph=True, dynamic=False, backend=backend)
    return whole(coconut.prefill), whole(coconut.step)


def forward(model: GPT, batch: coconut.Batch, phases: tuple) -> coconut.Output:
    """coconut.forward of a batch, by phases that are compiled or not."""
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
    """The next multiple that is not below n: 64 for 33 and 32."""
    return -(-n // multiple) * multiple


def pad_to(ids: Tensor, multiple: int, value: int = 0, left: bool = False) -> Tensor:
    """ids (B, T) with a value on the right, or on the left, up to a multiple of columns."""
    n = round_up(ids.size(1), multiple) - ids.size(1)
    return F.pad(ids, (n, 0) if left else (0, n), value=value)


class Loss(torch.nn.Module):
    """A forward pass as a module that returns the loss: what DistributedDataParallel can wrap."""

    def __init__(self, model: GPT, phases: tuple):
        super().__init__()
        self.model, self.phases = model, phases

    def forward(self, batch: coconut.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss on words, the loss that teaches thoughts, and the mean length of the thoughts."""
        out = forward(self.model, batch, self.phases)
        return out.loss, out.teaching_loss, out.thoughts.detach().float().norm(dim=-1).mean()
