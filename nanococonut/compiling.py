"""Few shapes, so that the work on a batch is prepared once for many: by torch.compile, or as a CUDA graph.

So prompts, suffixes and slots for thoughts are padded to multiples of a fixed length. Padding changes no result.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nanococonut import coconut
from nanococonut.devices import Machine
from nanococonut.model import GPT

PROMPT_BUCKET = 64  # prompts are padded to multiples of this many tokens (ours: few shapes, little padding)
SUFFIX_BUCKET = 8  # the same for suffixes, which are shorter
THOUGHT_BUCKET = 8  # up to 8 thoughts share one compiled step, 9 to 16 the next
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


class Loss(torch.nn.Module):
    """A forward pass as a module that returns the losses, so that DistributedDataParallel can wrap it."""

    def __init__(self, model: GPT, phases: tuple, machine: Machine):
        super().__init__()
        self.model, self.phases, self.machine = model, phases, machine

    def forward(self, *inputs) -> tuple[Tensor, Tensor]:
        """The loss to train on; and (3,): the loss on words, that on next words, and the thoughts' mean norm.

        The inputs are the fields of a Batch and shares (3,): the three are multiplied by the part that they are of all.
        """
        *batch, shares = inputs
        with self.machine.autocast():
            out = forward(self.model, coconut.Batch(*batch), self.phases)
            norm = out.thoughts.detach().float().norm(dim=-1).mean()
            numbers = torch.stack([out.loss, out.next_loss, norm]) * shares
        return numbers[0] + numbers[1], numbers.detach()


class Gradients:
    """One forward and one backward pass over a part of a batch.

    On one GPU they are recorded once for each shape of a batch, as a CUDA graph, and replayed. To start the 2,600
    kernels of a small model's step one by one takes ten times as long as they run.
    """

    def __init__(self, model: GPT, phases: tuple, machine: Machine):
        self.loss, self.machine = Loss(model, phases, machine), machine
        if machine.n_processes > 1:
            self.loss = DistributedDataParallel(self.loss)
        self.params, self.block_size = list(model.parameters()), model.config.block_size
        self.graphs = {}  # shapes -> a graph, the tensors it reads, the numbers it writes
        self.replays = machine.device.type == "cuda" and machine.n_processes == 1
        if self.replays:
            self.sums = [torch.zeros_like(p) for p in self.params]  # what the graphs add gradients to
            self.pool = torch.cuda.graph_pool_handle()  # graphs share memory, because they run one after the other

    def __call__(self, part: coconut.Batch, shares: list[float], is_last: bool = True) -> Tensor:
        """Adds the gradient of a part to .grad, averaged over processes with the last. Returns the numbers of Loss."""
        inputs = [*(in_buckets(part, self.block_size) if self.replays else part), torch.tensor(shares)]
        inputs = list(map(self.machine.to_device, inputs))
        if self.replays:
            return self.replay(inputs)
        with contextlib.nullcontext() if is_last or self.machine.n_processes == 1 else self.loss.no_sync():
            loss, numbers = self.loss(*inputs)
            (loss * self.machine.n_processes).backward()  # undoes the mean that DistributedDataParallel takes
        return numbers

    def replay(self, inputs: list) -> Tensor:
        """The work of __call__, done by the graph for inputs of these shapes."""
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

    def record(self, inputs: list) -> tuple:
        """A graph, the tensors that it reads, which are the inputs, and the numbers that it writes."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), torch.random.fork_rng([here.device]):
            torch.autograd.grad(self.loss(*inputs)[0], self.params)  # libraries are set up at first use
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            loss, numbers = self.loss(*inputs)
            torch._foreach_add_(self.sums, torch.autograd.grad(loss, self.params))
        return graph, inputs, numbers
