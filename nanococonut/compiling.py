"""Few shapes, so that what is prepared for one batch serves many.

torch.compile prepares code, and Replay a CUDA graph, for one shape of a batch. So prompts, suffixes
and slots for thoughts are padded to multiples of a fixed length. Padding changes no result.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanococonut import coconut
from nanococonut.model import GPT

# Prompts are padded to multiples of this many tokens (ours: few shapes, little padding).
PROMPT_BUCKET = 64
SUFFIX_BUCKET = 8  # the same for suffixes, which are shorter
THOUGHT_BUCKET = 8  # up to 8 thoughts share one compiled pass, 9 to 16 the next


def compiled(backend: str = "inductor") -> tuple:
    """The compiled phases, prefill and feed.

    Prefill becomes one graph per prompt bucket. So does the pass of a thought, whatever its number;
    the pass over a suffix becomes one per shape.
    """
    # Shapes per function; torch's default of 8 is too few for the stages.
    torch._dynamo.config.cache_size_limit = 64
    whole = torch.compile(fullgraph=True, dynamic=False, backend=backend)
    return whole(coconut.prefill), whole(coconut.feed)


def forward(model: GPT, batch: coconut.Batch, phases: tuple) -> coconut.Output:
    """coconut.forward of a batch, with compiled phases."""
    n_slots = round_up(max(1, batch.n_thoughts), THOUGHT_BUCKET)
    out = coconut.forward(model, in_buckets(batch, model.config.block_size), *phases, n_slots)
    return out._replace(logits=out.logits[:, : batch.suffix.size(1)])


def in_buckets(batch: coconut.Batch, block_size: int) -> coconut.Batch:
    """A batch padded to one of a few shapes, with prompts of at most block_size tokens."""
    question = batch.question
    if question is not None:
        question = pad_to(question, SUFFIX_BUCKET, left=True)
    return batch._replace(
        prompt=pad_to(batch.prompt, PROMPT_BUCKET)[:, :block_size],
        suffix=pad_to(batch.suffix, SUFFIX_BUCKET),
        targets=pad_to(batch.targets, SUFFIX_BUCKET, value=coconut.NOTHING),
        question=question,
    )


def round_up(n: int, multiple: int) -> int:
    """n rounded up to a multiple.

    >>> round_up(33, 32), round_up(64, 32)
    (64, 64)
    """
    return -(-n // multiple) * multiple


def pad_to(ids: Tensor, multiple: int, value: int = 0, left: bool = False) -> Tensor:
    """ids (..., T) padded with value, on the right or on the left, to a multiple of columns."""
    n = round_up(ids.size(-1), multiple) - ids.size(-1)
    return F.pad(ids, (n, 0) if left else (0, n), value=value)


class Recording(NamedTuple):
    """A CUDA graph of a forward and a backward pass."""

    graph: torch.cuda.CUDAGraph
    inputs: list  # what it reads: the tensors of a batch and its weights, and what is no tensor
    numbers: Tensor  # (3,), which it writes


class Replay:
    """A forward and a backward pass on one GPU, recorded once for each shape of a batch.

    To start the 2,600 kernels of a small model's step one by one takes ten times as long as they
    run. A CUDA graph starts them all at once.
    """

    def __init__(self, losses, model: GPT):
        """losses(part, weights (3,)) -> the loss to train on, and (3,) numbers: see train.py."""
        self.losses = losses
        self.params = list(model.parameters())
        self.block_size = model.config.block_size
        self.recordings = {}  # shapes of the inputs -> a Recording
        self.sums = [torch.zeros_like(p) for p in self.params]  # what the graphs add gradients to
        # Graphs share memory, because they run one after the other.
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, part: coconut.Batch, weights: Tensor) -> Tensor:
        """Adds the gradient of a part of a batch to .grad. Returns the numbers of losses()."""
        inputs = [*in_buckets(part, self.block_size), weights]
        shapes = tuple(x.shape if isinstance(x, Tensor) else x for x in inputs)
        if shapes not in self.recordings:
            self.recordings[shapes] = self.record(inputs)
        recording = self.recordings[shapes]
        for recorded, x in zip(recording.inputs, inputs, strict=True):
            if isinstance(x, Tensor):
                recorded.copy_(x)
        is_first_part = self.params[0].grad is not self.sums[0]  # zero_grad() took them away
        if is_first_part:
            torch._foreach_zero_(self.sums)
            for p, total in zip(self.params, self.sums, strict=True):
                p.grad = total
        recording.graph.replay()
        return recording.numbers

    def losses_of(self, inputs: list) -> tuple[Tensor, Tensor]:
        """losses() of a part and weights, given as one list."""
        *part, weights = inputs
        return self.losses(coconut.Batch(*part), weights)

    def record(self, inputs: list) -> Recording:
        """Records a graph that reads the tensors among the inputs."""
        self.warm_up(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss, numbers = self.losses_of(inputs)
            torch._foreach_add_(self.sums, torch.autograd.grad(loss, self.params))
        return Recording(graph, inputs, numbers)

    def warm_up(self, inputs: list) -> None:
        """Runs once without recording, because libraries are set up at first use.

        On another stream, as torch.cuda.graph demands it; the random state stays as it is.
        """
        main_stream = torch.cuda.current_stream()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream), torch.random.fork_rng([main_stream.device]):
            loss, _ = self.losses_of(inputs)
            torch.autograd.grad(loss, self.params)
        main_stream.wait_stream(side_stream)
