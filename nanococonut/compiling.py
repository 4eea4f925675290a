"""Few shapes, so that the work on a batch is prepared once for many: by torch.compile, or as a CUDA graph.

So prompts, suffixes and slots for thoughts are padded to multiples of a fixed length. Padding changes no result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut import coconut
from nanococonut.model import GPT

PROMPT_BUCKET = 64  # prompts are padded to multiples of this many tokens (ours: few shapes, little padding)
SUFFIX_BUCKET = 8  # the same for suffixes, which are shorter
THOUGHT_BUCKET = 8  # up to 8 thoughts share one compiled step, 9 to 16 the next


def compiled(backend: str = "inductor") -> tuple:
    """The compiled phases: per prompt bucket one graph for prefill and one for all thoughts, one per suffix shape."""
    torch._dynamo.config.cache_size_limit = 64  # shapes per function; torch's default of 8 is too few for the stages
    whole = torch.compile(fullgraph=True, dynamic=False, backend=backend)
    return whole(coconut.prefill), whole(coconut.step)


def forward(model: GPT, batch: coconut.Batch, phases: tuple) -> coconut.Output:
    """coconut.forward of a batch, with compiled phases."""
    n_slots = round_up(max(1, batch.n_thoughts), THOUGHT_BUCKET)
    out = coconut.forward(model, in_buckets(batch, model.config.block_size), *phases, n_slots)
    return out._replace(logits=out.logits[:, : batch.suffix.size(1)])


def in_buckets(batch: coconut.Batch, block_size: int) -> coconut.Batch:
    """A batch padded to one of a few shapes, with prompts of at most block_size tokens."""
    question = batch.question
    return batch._replace(
        prompt=pad_to(batch.prompt, PROMPT_BUCKET)[:, :block_size],
        suffix=pad_to(batch.suffix, SUFFIX_BUCKET),
        targets=pad_to(batch.targets, SUFFIX_BUCKET, value=coconut.NOTHING),
        question=None if question is None else pad_to(question, SUFFIX_BUCKET, left=True),
    )


def round_up(n: int, multiple: int) -> int:
    """n rounded up to a multiple: 33 to 64, for multiples of 32."""
    return -(-n // multiple) * multiple


def pad_to(ids: Tensor, multiple: int, value: int = 0, left: bool = False) -> Tensor:
    """ids (..., T) padded with value, on the right or on the left, to a multiple of columns."""
    n = round_up(ids.size(-1), multiple) - ids.size(-1)
    return F.pad(ids, (n, 0) if left else (0, n), value=value)


class Replay:
    """A forward and a backward pass on one GPU, recorded once for each shape of a batch as a CUDA graph.

    To start the 2,600 kernels of a small model's step one by one takes ten times as long as they run.
    """

    def __init__(self, losses, model: GPT):
        """losses(part, shares (3,)) -> the loss to train on, and (3,) numbers to look at: see train.py."""
        self.losses, self.params, self.block_size = losses, list(model.parameters()), model.config.block_size
        self.graphs = {}  # shapes -> a graph, the tensors it reads, the numbers it writes
        self.sums = [torch.zeros_like(p) for p in self.params]  # what the graphs add gradients to
        self.pool = torch.cuda.graph_pool_handle()  # graphs share memory, because they run one after the other

    def __call__(self, part: coconut.Batch, shares: Tensor) -> Tensor:
        """Adds the gradient of a part of a batch to .grad. Returns the numbers of losses()."""
        inputs = [*in_buckets(part, self.block_size), shares]
        shapes = tuple(x.shape if isinstance(x, Tensor) else x for x in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = self.record(inputs)
        graph, places, numbers = self.graphs[shapes]
        for place, x in zip(places, inputs, strict=True):
            if isinstance(x, Tensor):
                place.copy_(x)
        if self.params[0].grad is not self.sums[0]:  # the first part of a step
            torch._foreach_zero_(self.sums)
            for p, total in zip(self.params, self.sums, strict=True):
                p.grad = total
        graph.replay()
        return numbers

    def of(self, inputs: list) -> tuple[Tensor, Tensor]:
        """losses() of a part and shares, given as one list."""
        *part, shares = inputs
        return self.losses(coconut.Batch(*part), shares)

    def record(self, inputs: list) -> tuple:
        """A graph, the tensors that it reads, which are the inputs, and the numbers that it writes."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), torch.random.fork_rng([here.device]):
            torch.autograd.grad(self.of(inputs)[0], self.params)  # libraries are set up at first use
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss, numbers = self.of(inputs)
            torch._foreach_add_(self.sums, torch.autograd.grad(loss, self.params))
        return graph, inputs, numbers
