"""Makes the batch of a training step: draws problems, augments them, and pads them to a coconut.Batch.

The examples of a step, and their words, depend only on (seed, step).
"""

import random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanococonut import curriculum
from nanococonut.coconut import NOTHING, Batch
from nanococonut.data import Split
from nanococonut.schedule import Schedule
from nanococonut.settings import TrainConfig

# Minimum steps of --reask's questions until --short_from: with 1 from the start, no search was learned (ours).
LEAST_HOPS = 3


def draw_batch(c: TrainConfig, problems: Split, schedule: Schedule, special: dict[str, int], step: int) -> Batch:
    """The batch of a training step."""
    rng = random.Random(f"{c.seed} {step}")
    stage, n_behind = schedule.locate(step)
    plan = schedule.plan(stage, progress=n_behind / schedule.n_steps[stage])
    keep = min(1.0, step / c.grow) if c.grow else 1.0
    how = dict(reask=c.reask, keep=keep, n_taught=plan.n_thoughts if c.taught else 0)
    how["least"] = 1 if 0 < c.short_from <= step else LEAST_HOPS
    groups = problems.draw(c.batch_size, rng, c.augment, c.questions, **how)
    examples = [example for group in groups for example in group.examples]
    pairs = [curriculum.arrange(example, plan, special, rng) for example in examples]
    contexts = [group.context for group in groups if group.context]
    frontiers = [example.frontiers for example in examples]
    return collate(pairs, plan.n_thoughts, special["eos"], contexts, frontiers)


def collate(pairs, n_thoughts: int, pad_id: int, contexts=(), frontiers=()) -> Batch:
    """Pads examples to a Batch. An example is a pair of the ids before and after its thoughts, see curriculum.arrange.

    contexts   ids of shared facts, each for an equal number of neighbouring examples; empty: none are shared
    frontiers  for each example, [k]: the tokens that thought k + 1 is taught; the last thoughts may have none
    """
    befores, afters = [before for before, _ in pairs], [after for _, after in pairs]
    prompts, question, question_len, taught = befores, None, None, None
    if contexts:
        prompts, question, question_len = contexts, pad(befores, pad_id, left=True), lengths(befores)
    levels = [level[k] if k < len(level) else [] for level in frontiers for k in range(n_thoughts)]
    if any(levels):
        taught = pad(levels, NOTHING).unflatten(0, (len(pairs), n_thoughts))  # (B, K, F)
    suffix, targets = pad([ids[:-1] for ids in afters], pad_id), pad([ids[1:] for ids in afters], NOTHING)
    return Batch(pad(prompts, pad_id), lengths(prompts), suffix, targets, n_thoughts, question, question_len, taught)


def part(batch: Batch, which: slice) -> Batch:
    """The part of a batch with some of its prompts and the questions on top of them."""
    G = len(batch.prompt)

    def rows(x):
        return x.unflatten(0, (G, -1))[which].flatten(0, 1) if isinstance(x, Tensor) else x

    return Batch(*map(rows, batch))


def lengths(rows: list[list[int]]) -> Tensor:
    """The lengths of rows, (B,) int64."""
    return torch.tensor([len(row) for row in rows])


def pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of ids as one int64 tensor (B, longest), padded on the right or on the left."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left" if left else "right")
